//! Tests that compare the dependencies that the README and the front page of the rustdoc name with those of this package.

const README: &str = include_str!("../../../README.md");
const LIBRARY: &str = include_str!("../../../src/lib.rs");
const MANIFEST: &str = include_str!("../Cargo.toml");

/// Returns the content of the first code block of `markdown` that begins with the line `start`.
fn code_block<'a>(markdown: &'a str, start: &str) -> &'a str {
    let (_, block) = markdown.split_once(&format!("\n{start}\n")).unwrap();
    block.split_once("```").unwrap().0
}

/// Returns the lines of `[dependencies]` in a manifest.
fn dependencies(manifest: &str) -> Vec<String> {
    let (_, section) = manifest.split_once("[dependencies]\n").unwrap();
    let lines = section.lines().take_while(|line| !line.is_empty());
    lines
        .map(|line| line.replace(r#", path = "../..""#, ""))
        .collect()
}

/// Returns the doc comment of a source file, as Markdown.
fn front_page(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect()
}

#[test]
fn readme_names_the_dependencies_of_its_blocks() {
    assert_eq!(
        dependencies(code_block(README, "```toml")),
        dependencies(MANIFEST)
    );
}

#[test]
fn front_page_has_the_program_of_the_readme() {
    let page = front_page(LIBRARY);
    let program = code_block(&page, "```no_run");
    assert_eq!(program, code_block(README, "```rust,no_run"));
    // The program does not need the feature `json`, which other blocks of the README need.
    let named = dependencies(code_block(&page, "```toml"));
    let of_readme = dependencies(code_block(README, "```toml"));
    assert_eq!(
        named,
        of_readme
            .iter()
            .map(|line| line.replace(r#"["axum", "json"]"#, r#"["axum"]"#))
            .collect::<Vec<_>>()
    );
}
