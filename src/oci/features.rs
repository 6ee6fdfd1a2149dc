//! `features`: what of the runtime-spec there is.

/// The text that `features` prints (features.md of the runtime-spec).
pub fn json() -> String {
    todo!()
}
