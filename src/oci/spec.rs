//! `spec`: a bundle's configuration to start from.

/// The text of the `config.json` that `spec` writes, in runc's form. `rootless`: the caller's user and group, for a container of an ordinary
/// user.
pub fn default(rootless: Option<(u32, u32)>) -> String {
    let _ = rootless;
    todo!()
}
