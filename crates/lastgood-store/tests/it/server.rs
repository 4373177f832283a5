//! A store on loopback that answers what a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A status, headers and a body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A head that promises more bytes than there are; then the connection ends.
    Cut(u16, u64, Vec<u8>),
    /// The connection ends without an answer.
    Lost,
    /// Nothing ever comes.
    Silence,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), Vec::new())
    }

    /// An error as S3, GCS and Azure describe it.
    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>the words of the \
             store</Message></Error>"
        );
        Self::Answer(status, vec![("content-type", "application/xml".into())], body.into())
    }

    pub(crate) fn object(bytes: &[u8]) -> Self {
        Self::Answer(200, object_headers(), bytes.to_vec())
    }

    pub(crate) fn range(start: u64, bytes: &[u8], size: u64) -> Self {
        let end = start + bytes.len() as u64 - 1;
        let mut headers = object_headers();
        headers.push(("content-range", format!("bytes {start}-{end}/{size}")));
        Self::Answer(206, headers, bytes.to_vec())
    }
}

fn object_headers() -> Vec<(&'static str, String)> {
    vec![("etag", "\"0123\"".into()), ("last-modified", "Tue, 24 Nov 2026 08:00:00 GMT".into())]
}

type Answering = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server that runs as long as the process does.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    connections: usize,
}

impl Server {
    pub(crate) fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Seen>>::default();
        let (answer, shared): (Arc<Answering>, _) = (Arc::new(answer), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                shared.lock().unwrap().connections += 1;
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&shared));
                thread::spawn(move || serve(stream, answer.as_ref(), &seen));
            }
        });
        Self { endpoint, seen }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().requests.clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

fn serve(stream: TcpStream, answer: &Answering, seen: &Mutex<Seen>) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        seen.lock().unwrap().requests.push(request.clone());
        let (status, headers, promised, body, ends) = match answer(&request) {
            Reply::Answer(status, headers, body) => {
                (status, headers, body.len() as u64, body, false)
            }
            Reply::Cut(status, promised, body) => (status, object_headers(), promised, body, true),
            Reply::Lost => return,
            Reply::Silence => {
                // Longer than any test waits; the process ends it.
                thread::park_timeout(Duration::from_secs(600));
                return;
            }
        };
        let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if status != 204 {
            head += &format!("content-length: {promised}\r\n");
        }
        head += "\r\n";
        let body: &[u8] = if request.method == "HEAD" { &[] } else { &body };
        let sent = writer.write_all(&[head.as_bytes(), body].concat());
        if sent.is_err() || ends {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines.first()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut request = Request { method, path, headers, body: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}
