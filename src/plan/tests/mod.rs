//! The proof of the planner: a world in memory that carries out plans as the executor does, and what must hold of it.

mod cases;
mod generate;
mod lint;
mod properties;
mod render;
mod world;
