//! HTTP/1.1 connections without a pool or a redirect: the least that a client can do.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Fallible;
use crate::tls;

/// Address of the null server.
#[derive(Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Endpoint {
    /// With `ca`, https.
    pub fn new(address: SocketAddr, ca: Option<&Path>) -> Fallible<Self> {
        Ok(Self { address, tls: ca.map(tls::connector).transpose()? })
    }

    /// URL for clients.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// One connection; it is driven in the background until the sender is dropped.
    pub async fn connect<B>(&self) -> Fallible<SendRequest<B>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => open(stream).await,
            Some(tls) => open(tls.connect(ServerName::from(self.address.ip()), stream).await?).await,
        }
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, path: &str) -> Fallible<Response<Bytes>> {
        let mut sender = self.connect::<Empty<Bytes>>().await?;
        let request = Request::get(path).header(http::header::HOST, self.address.to_string()).body(Empty::new())?;
        read_whole(sender.send_request(request).await?).await
    }
}

async fn open<B>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Fallible<SendRequest<B>>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Reads the answer to its end, which is what makes the connection reusable.
pub async fn read_whole(answer: Response<Incoming>) -> Fallible<Response<Bytes>> {
    let (head, body) = answer.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}
