//! HTTP server for `/healthz`, `/readyz` and `/metrics`, which the kubelet and Prometheus request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn, yield_now};
use tokio::time::{sleep, timeout};

/// Maximum number of open connections. One more ends the oldest, so that clients that open
/// connections and send nothing do not keep the kubelet out.
const MAX_CONNECTIONS: usize = 64;
/// Maximum duration of a connection.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Pause after a failed accept, for example when the process has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Answer {
    /// Whether the status is 200; otherwise it is 503.
    pub(crate) is_ok: bool,
    pub(crate) text: String,
}

/// Future of an answer. `None` for a path that the agent does not serve (404).
pub(crate) type Coming = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// Function from the path of a request to its answer.
pub(crate) type Answers = Arc<dyn Fn(&str) -> Coming + Send + Sync>;

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        format!(
            "listen on {address}: {error}; choose another with --listen ADDRESS:PORT or \"off\""
        )
    })
}

/// Answers requests for ever. `names` are the values of `Host` to accept beside addresses.
pub(crate) async fn serve(listener: TcpListener, names: Vec<String>, answers: Answers) {
    let names = Arc::new(names);
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            open.pop_front().inspect(JoinHandle::abort);
        }
        open.push_back(spawn(connection(stream, Arc::clone(&names), Arc::clone(&answers))));
        // Lets the new task read a request that has arrived before the next accept may abort it.
        yield_now().await;
    }
}

async fn connection(stream: TcpStream, names: Arc<Vec<String>>, answers: Answers) {
    let service = service_fn(move |request| {
        let (names, answers) = (Arc::clone(&names), Arc::clone(&answers));
        async move { Ok::<_, Infallible>(respond(&request, &names, &answers).await) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).max_buf_size(8 * 1024);
    // A client that closes the connection early is no fault of the agent.
    let _ =
        timeout(MAX_CONNECTION_TIME, server.serve_connection(TokioIo::new(stream), service)).await;
}

/// Whether the agent accepts this `Host` header. A web page could point its own domain at the
/// agent's address, so that a browser on the node reads the answers for it (DNS rebinding).
fn is_known(host: Option<&str>, names: &[String]) -> bool {
    // Only HTTP/1.0 allows a request without `Host`, and no browser sends HTTP/1.0.
    let Some(host) = host else { return true };
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = name.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok() || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

async fn respond(
    request: &Request<Incoming>,
    names: &[String],
    answers: &Answers,
) -> Response<Full<Bytes>> {
    let host = request.headers().get(HOST).map(|value| value.to_str().unwrap_or("?"));
    let (status, text) = match request.method() {
        _ if !is_known(host, names) => (
            StatusCode::MISDIRECTED_REQUEST,
            "not a name of this agent: ask by address, or start it with --allow-host NAME\n".into(),
        ),
        &Method::GET | &Method::HEAD => match answers(request.uri().path()).await {
            Some(Answer { is_ok: true, text }) => (StatusCode::OK, text),
            Some(Answer { is_ok: false, text }) => (StatusCode::SERVICE_UNAVAILABLE, text),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_known_names_are_asked_by() {
        let names = ["localhost".to_owned(), "node-1".to_owned()];
        let known = |host: &str| is_known(Some(host), &names);
        for host in
            ["127.0.0.1:9617", "[::1]:9617", "[::1]", "10.0.0.1", "localhost:9617", "Node-1."]
        {
            assert!(known(host), "{host}");
        }
        for host in
            ["", "evil.example:9617", "localhost.evil.example", "node-1:x", "127.0.0.1.evil", "?"]
        {
            assert!(!known(host), "{host}");
        }
        assert!(is_known(None, &names));
    }
}
