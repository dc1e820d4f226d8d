//! Replays the corpus of the fuzz target `gguf`, so that what fuzzing found stays found.

mod reread;

use std::path::Path;

#[test]
fn the_corpus_is_refused_or_comes_back_equal() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf");
    let (mut files, mut models) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display()); // shown if the check panics
        files += 1;
        models += usize::from(reread::check(&std::fs::read(path).unwrap()));
    }
    assert!(
        files >= 20 && models >= 5 && models < files,
        "{models} models among {files} files: the corpus lost its point"
    );
}
