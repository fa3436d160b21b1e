//! Filter between the broker's socket and lapin: rewrites frames that lapin can't parse into ones
//! that it can (see [`frames`]).
//!
//! A message that a client can't parse closes its whole connection, and the broker redelivers it on
//! the next one: a single such message would stop every worker for good.

mod frame_reader;
mod frames;
mod mark;
mod trim;

use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::tcp::{AMQPUriTcpExt as _, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

use frames::FrameSanitizer;

/// Read size of the socket, in bytes.
const CHUNK: usize = 16 * 1024;

/// Opens a connection that is read through a [`FrameSanitizer`], above TLS if there is any.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<Connection> {
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), SanitizingReactor(Tokio::current())));
    let connect = async move |uri: AMQPUri, _: Runtime<_>| {
        let frame_max = uri.query.frame_max.unwrap_or_default();
        let inner = uri.connect_with_config_async(tls.as_ref(), &Runtime::tokio_current()).await?;
        Ok(AsyncTcpStream::Plain(SanitizedStream::new(inner, frame_max)))
    };
    Connection::connector(uri, runtime, connect, properties).await
}

/// Returns what lapin reads of a stream that arrives in these chunks.
pub(crate) fn sanitized<'a>(frame_max: u32, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sanitizer = FrameSanitizer::new(frame_max);
    let (mut read, mut buffer) = (Vec::new(), vec![0; CHUNK]);
    for chunk in chunks {
        sanitizer.feed(chunk);
        while let count @ 1.. = sanitizer.take(&mut buffer) {
            read.extend_from_slice(&buffer[..count]);
        }
    }
    read
}

type PlainStream = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Tokio's reactor, with streams that sanitize frames.
#[derive(Debug, Clone)]
struct SanitizingReactor(Tokio);

impl Reactor for SanitizingReactor {
    type TcpStream = SanitizedStream<PlainStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(SanitizedStream::new(AsyncTcpStream::Plain(connecting.await?), 0)) }
    }
}

/// Stream whose frames are sanitized as they are read.
struct SanitizedStream<S> {
    inner: S,
    chunk: Box<[u8]>,
    sanitizer: FrameSanitizer,
}

impl<S> SanitizedStream<S> {
    fn new(inner: S, frame_max: u32) -> Self {
        Self { inner, chunk: vec![0; CHUNK].into(), sanitizer: FrameSanitizer::new(frame_max) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SanitizedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { inner, chunk, sanitizer } = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let given = sanitizer.take(buffer);
            if given > 0 {
                return Poll::Ready(Ok(given));
            }
            match ready!(Pin::new(&mut *inner).poll_read(cx, chunk))? {
                0 => return Poll::Ready(Ok(0)),
                read => sanitizer.feed(&chunk[..read]),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SanitizedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}
