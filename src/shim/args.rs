//! The shim's command line, as containerd writes it: Go's flags, then an action.

use anyhow::{bail, Result};

/// What containerd asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub debug: bool,
    pub version: bool,
    pub info: bool,
    pub namespace: String,
    pub id: String,
    /// containerd's own socket.
    pub address: String,
    /// Directory of the bundle, for `delete`.
    pub bundle: String,
    /// Socket of a shim that serves.
    pub socket: String,
    pub publish_binary: String,
    /// `start`, `delete`, or nothing: serve.
    pub action: String,
}

impl Args {
    /// `words` without the program's name.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Args> {
        let mut args = Args::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-').map(|w| w.strip_prefix('-').unwrap_or(w)) else {
                args.action = word;
                break;
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if let Some(switch) = args.switch(name) {
                *switch = given.is_none_or(|v| ["1", "t", "T", "true", "TRUE", "True"].contains(&v.as_str()));
                continue;
            }
            let Some(value) = args.value(name) else { bail!("flag provided but not defined: -{name}") };
            match given.or_else(|| words.next()) {
                Some(given) => *value = given,
                None => bail!("flag needs an argument: -{name}"),
            }
        }
        Ok(args)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            _ => None,
        }
    }

    fn value(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "id" => Some(&mut self.id),
            "address" => Some(&mut self.address),
            "bundle" => Some(&mut self.bundle),
            "socket" => Some(&mut self.socket),
            "publish-binary" => Some(&mut self.publish_binary),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args> {
        Args::parse(words.iter().map(|w| w.to_string()))
    }

    #[test]
    fn flags_of_containerd() {
        let args = parse(&["-namespace", "k8s.io", "--id=a", "-debug", "-address", "/x", "start"]).unwrap();
        assert_eq!((args.namespace.as_str(), args.id.as_str(), args.action.as_str()), ("k8s.io", "a", "start"));
        assert!(args.debug && !args.version);
        assert!(!parse(&["-debug=false"]).unwrap().debug);
        assert_eq!(parse(&["-id", "-x"]).unwrap().id, "-x");
    }

    #[test]
    fn mistakes() {
        assert!(parse(&["-id"]).is_err());
        assert!(parse(&["-nothing", "x"]).is_err());
    }
}
