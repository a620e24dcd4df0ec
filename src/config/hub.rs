//! Where models are pulled from: the variables that Hugging Face's own tools read, so that what holds for those holds here.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::Fault;

const USUAL_ENDPOINT: &str = "https://huggingface.co";
/// Longer ones are no tokens; a header has limits too.
const LONGEST_TOKEN: usize = 1024;

/// The hub, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or the file that signing in with Hugging Face's tools leaves.
    pub token: Option<Token>,
    /// The cache that those tools share: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, or `hub` within `HF_HOME`.
    pub cache: Option<PathBuf>,
}

/// A secret: it shows itself to nobody who does not ask for it by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// For the one header it belongs in.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl HubSettings {
    /// What the environment says.
    ///
    /// # Errors
    /// Every variable that says something impossible; a token is never repeated.
    pub fn from_environment() -> Result<Self, Vec<Fault>> {
        Self::read(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Fault>> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| set(name).map(PathBuf::from));
        let home = first(&["HF_HOME"])
            .or_else(|| Some(first(&["XDG_CACHE_HOME"])?.join("huggingface")))
            .or_else(|| Some(first(&["HOME"])?.join(".cache/huggingface")));
        let cache =
            first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).or_else(|| home.as_ref().map(|home| home.join("hub")));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| USUAL_ENDPOINT.to_owned());
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();

        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| {
            faults.push(Fault { key: key.to_owned(), source: Some("the environment".to_owned()), message });
        };
        let host = host(&endpoint);
        if host.is_none() {
            fault("HF_ENDPOINT", format!("`{endpoint}` is no address such as {USUAL_ENDPOINT}"));
        }
        let (named, token) =
            match ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((name, set(name)?))) {
                Some((name, token)) => (name, Some(token)),
                // Signing in is consent to be known everywhere; this variable takes it back.
                None if set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() => ("HF_TOKEN", None),
                None => {
                    let file = first(&["HF_TOKEN_PATH"]).or_else(|| home.map(|home| home.join("token")));
                    ("HF_TOKEN_PATH", file.and_then(|file| std::fs::read_to_string(file).ok()))
                }
            };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if let Some(token) = &token {
            if token.len() > LONGEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                fault(named, format!("is no token: at most {LONGEST_TOKEN} letters, digits and signs"));
            } else if endpoint.starts_with("http://") && host.is_some_and(|host| !is_this_machine(host)) {
                fault(
                    "HF_ENDPOINT",
                    format!("`{endpoint}` would get the token unencrypted; use https, or unset the token"),
                );
            }
        }
        if faults.is_empty() { Ok(Self { endpoint, token: token.map(Token), cache }) } else { Err(faults) }
    }
}

/// The host of a plain address: no user, query or fragment.
fn host(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"))?;
    if rest.contains(['@', '?', '#', '\\', '%']) || rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let authority = rest.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<HubSettings, Vec<Fault>> {
        HubSettings::read(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_usual_variables_say_where_and_who() {
        let plain = read(&[("HOME", "/home/x")]).expect("valid");
        assert_eq!(plain.endpoint, USUAL_ENDPOINT);
        assert_eq!(plain.token, None);
        assert_eq!(plain.cache, Some(PathBuf::from("/home/x/.cache/huggingface/hub")));
        let cases = [
            (vec![("HF_HOME", "/hf")], "/hf/hub"),
            (vec![("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/x")], "/xdg/huggingface/hub"),
            (vec![("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/cache")], "/cache"),
            (vec![("HF_HUB_CACHE", "/first"), ("HUGGINGFACE_HUB_CACHE", "/second")], "/first"),
        ];
        for (variables, cache) in cases {
            assert_eq!(read(&variables).expect("valid").cache, Some(PathBuf::from(cache)), "{variables:?}");
        }
        let mirror =
            read(&[("HF_ENDPOINT", " https://hub.example.org/hf/ "), ("HF_TOKEN", " hf_abc \n")]).expect("valid");
        assert_eq!(mirror.endpoint, "https://hub.example.org/hf");
        assert_eq!(mirror.token.as_ref().map(Token::expose), Some("hf_abc"));
        assert!(!format!("{mirror:?}").contains("hf_abc"));
    }

    #[test]
    fn a_stored_token_is_used_unless_it_is_switched_off() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "hf_stored\n").expect("written");
        let home = folder.path().display().to_string();
        let token = |variables: &[(&str, &str)]| {
            let all = [&[("HF_HOME", home.as_str())], variables].concat();
            read(&all).expect("valid").token.map(|token| token.expose().to_owned())
        };
        assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[("HF_TOKEN", "hf_named")]).as_deref(), Some("hf_named"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn impossible_values_are_told_and_a_token_never_is() {
        for endpoint in ["huggingface.co", "ftp://x", "https://", "https://u:p@x", "https://x?y", "https://a b"] {
            assert_eq!(read(&[("HF_ENDPOINT", endpoint)]).expect_err(endpoint)[0].key, "HF_ENDPOINT");
        }
        let faults = read(&[("HF_TOKEN", "hf_se cret"), ("HF_ENDPOINT", "x")]).expect_err("two faults");
        assert_eq!(faults.len(), 2);
        assert!(faults.iter().all(|fault| !fault.to_string().contains("cret")));
        let told = read(&[("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", "http://hub.example.org")]).expect_err("plain")[0]
            .to_string();
        assert!(told.contains("unencrypted") && !told.contains("secret"), "{told}");
        for here in ["http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:1"] {
            assert!(read(&[("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", here)]).is_ok(), "{here}");
        }
    }
}
