//! Time to decode a message into a job, in either form.

use std::hint::black_box;

use consign::domain::job::{compact, parse, wire};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for (name, json) in [
        ("minimal", include_str!("../tests/golden/jobs/minimal.json").trim()),
        ("full", include_str!("../tests/golden/jobs/full.json").trim()),
        ("inline", include_str!("../tests/golden/jobs/inline.json").trim()),
    ] {
        let Ok(raw) = wire::read(json.as_bytes()) else { continue };
        let Ok(bytes) = compact::encode(&raw) else { continue };
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("json/{name}"), |b| b.iter(|| parse(None, None, black_box(json.as_bytes()))));
        let form = Some(compact::CONTENT_TYPE);
        group.bench_function(format!("compact/{name}"), |b| b.iter(|| parse(form, None, black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
