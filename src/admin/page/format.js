// Numbers and times for people. No access to the document.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n) => WHOLE.format(n);

// Three digits, in units of 1,024: 7 B, 1.25 MiB, 64.0 MiB, 1,000 KiB.
export function bytes(n) {
  let unit = 0;
  let value = n;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  const shown = new Intl.NumberFormat("en", { minimumFractionDigits: 0, maximumFractionDigits: digits }).format(value);
  return `${shown} ${UNITS[unit]}`;
}

export const rate = (bytesPerSecond) => `${bytes(bytesPerSecond)}/s`;

// The two largest units: 6 ms, 4.2 s, 3 min 5 s, 2 h 10 min, 5 d 3 h.
export function duration(seconds) {
  if (seconds < 0.95) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (large, largeName, small, smallName) => (small ? `${large} ${largeName} ${small} ${smallName}` : `${large} ${largeName}`);
  if (whole < 3600) return two(Math.floor(whole / 60), "min", whole % 60, "s");
  const minutes = Math.floor(whole / 60);
  if (minutes < 24 * 60) return two(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.floor(minutes / 60);
  return two(Math.floor(hours / 24), "d", hours % 24, "h");
}

// Without the seconds once there are minutes, so that it does not tick.
export const roughly = (seconds) => (seconds < 60 ? `${Math.round(seconds)} s` : duration(Math.floor(seconds / 60) * 60));

// The time of day, after the date unless that is today: 05:21:58, 22 Nov 05:21:58.
export function clock(time) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "–";
  const today = date.toDateString() === new Date().toDateString();
  const day = today ? "" : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} `;
  return `${day}${date.toLocaleTimeString("en-GB")}`;
}

// Converts the UTC times in a text of the worker to the local time of the browser.
export const clocks = (text) => text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, clock);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

// source_not_found -> source not found
export const words = (name) => String(name).replaceAll("_", " ");
