//! Pocketenv.
