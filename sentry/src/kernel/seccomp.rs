//! Seccomp filters that a guest sets for itself (seccomp(2)).

use std::sync::Arc;

/// One filter and those set before it.
pub struct Filter {
    pub older: Option<Arc<Filter>>,
}
