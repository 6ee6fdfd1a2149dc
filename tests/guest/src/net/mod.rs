pub const GROUPS: &[(&str, &[crate::Case])] = &[];
