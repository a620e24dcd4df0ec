//! Reading server-sent events.

use futures::StreamExt;
use reqwest::Response;
use serde_json::Value;

/// One event, or a comment (named `:`).
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) data: Value,
}

fn parse(block: &str) -> Event {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned();
    let name = if block.starts_with(':') { ":".to_owned() } else { field("event:") };
    Event { id: field("id:"), name, data: serde_json::from_str(&field("data:")).unwrap_or(Value::Null) }
}

/// Every event until `enough` says so or the stream ends.
pub(crate) async fn read_until(response: Response, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut stream, mut text, mut events) = (response.bytes_stream(), String::new(), Vec::new());
    while let Some(chunk) = stream.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n") {
            let event = parse(block);
            text = rest.to_owned();
            let last = enough(&event);
            events.push(event);
            if last {
                return events;
            }
        }
    }
    events
}

/// Every event to the stream's end.
pub(crate) async fn read(response: Response) -> Vec<Event> {
    read_until(response, |_| false).await
}
