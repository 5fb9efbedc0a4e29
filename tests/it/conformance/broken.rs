//! Providers that are broken on purpose: the kit can fail.
