//! `/healthz`, `/readyz` and `/metrics` over HTTP, for the kubelet and Prometheus.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections at a time; more have to wait.
const CONNECTIONS: usize = 16;
/// How long one may take: whoever opens connections and says nothing does not keep them.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, for instance for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Answer {
    /// Whether all is well: 200, else 503.
    pub(crate) well: bool,
    pub(crate) text: String,
}

/// An answer to come, none where nothing is.
pub(crate) type Coming = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// Who answers: a path to its answer.
pub(crate) type Answers = Arc<dyn Fn(&str) -> Coming + Send + Sync>;

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        format!("listen on {address}: {error}; choose another by --listen ADDRESS:PORT, or \"off\"")
    })
}
pub(crate) async fn serve(listener: TcpListener, answers: Answers) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answers = Arc::clone(&answers);
                async move { Ok::<_, Infallible>(respond(&request, &answers).await) }
            });
            let mut server = http1::Builder::new();
            server.keep_alive(false).max_buf_size(8 * 1024);
            // A client that breaks off is its own affair.
            let _ = timeout(PATIENCE, server.serve_connection(TokioIo::new(stream), service)).await;
            drop(place);
        });
    }
}

async fn respond(request: &Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    let (status, text) = match request.method() {
        &Method::GET | &Method::HEAD => match answers(request.uri().path()).await {
            Some(Answer { well: true, text }) => (StatusCode::OK, text),
            Some(Answer { well: false, text }) => (StatusCode::SERVICE_UNAVAILABLE, text),
            None => (StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".into()),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
