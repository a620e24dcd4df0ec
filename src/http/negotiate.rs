//! `Accept` (RFC 9110, 12.5.1): which of what we have the client wants most.

/// The preferred of `offers` (media types, ours best first); `None` when none is acceptable. No header: the first.
pub(super) fn preferred<'a>(accept: Option<&str>, offers: &[&'a str]) -> Option<&'a str> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return offers.first().copied() };
    let ranges: Vec<(&str, f32)> = accept.split(',').map(range).collect();
    let weight = |offer: &str| {
        // The most specific range that fits decides.
        let fitting = ranges.iter().filter_map(|(range, q)| specificity(range, offer).map(|s| (s, *q)));
        fitting.max_by_key(|(specificity, _)| *specificity).map_or(0.0, |(_, q)| q)
    };
    let mut best: Option<(&str, f32)> = None;
    for offer in offers {
        let q = weight(offer);
        if q > best.map_or(0.0, |(_, known)| known) {
            best = Some((offer, q));
        }
    }
    best.map(|(offer, _)| offer)
}

fn range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or("");
    let q = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0);
    (range, q)
}

fn specificity(range: &str, offer: &str) -> Option<u8> {
    let kind = offer.split('/').next().unwrap_or("");
    match range.split_once('/') {
        _ if range.eq_ignore_ascii_case(offer) => Some(2),
        Some((left, "*")) if left.eq_ignore_ascii_case(kind) => Some(1),
        Some(("*", "*")) => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::preferred;

    const IMAGES: [&str; 3] = ["image/png", "image/jpeg", "image/webp"];

    #[test]
    fn the_most_specific_range_decides_and_the_largest_q_wins() {
        let cases = [
            (None, Some("image/png")),
            (Some("*/*"), Some("image/png")),
            (Some("image/*"), Some("image/png")),
            (Some("image/webp"), Some("image/webp")),
            (Some("image/webp, image/*;q=0.8"), Some("image/webp")),
            (Some("image/png;q=0.1, image/jpeg;q=0.5"), Some("image/jpeg")),
            (Some("image/*, image/png;q=0"), Some("image/jpeg")),
            (Some("text/html"), None),
        ];
        for (accept, expected) in cases {
            assert_eq!(preferred(accept, &IMAGES), expected, "{accept:?}");
        }
    }
}
