//! A small sysfs.
