//! The code blocks of the README, as doc tests: `cargo test --package tower-push-readme-tests --doc`. This package has only the dependencies
//! that the README names, so a block that needs another one does not compile. A run of the whole workspace would add the features that other
//! packages need.

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
