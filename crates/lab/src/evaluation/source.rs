//! Where questions come from, and the prompts made of them.

use super::rows::{Row, RowAnswer, read_json_lines, read_table};
use super::{Subject, Task};
use super::{generated, multiple_choice};
use crate::Error;
use std::path::{Path, PathBuf};

/// Where the questions are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TaskSource {
    /// `test/SUBJECT_test.csv` and `dev/SUBJECT_dev.csv` in a folder, or in its folder `mmlu`.
    Mmlu(PathBuf),
    /// `test.jsonl` and `train.jsonl` in a folder, or in its folder `gsm8k`.
    Gsm8k(PathBuf),
    /// JSON lines.
    File(PathBuf),
}

/// Which examples stand in the prompts.
#[derive(Clone, Debug)]
pub struct Shots {
    /// JSON lines to take them from: those of the question's subject, or where there are none, the first of the file. `None`: MMLU's own
    /// dev questions, GSM8K's train file, none for other files.
    pub file: Option<PathBuf>,
    /// How many, the first ones.
    pub count: usize,
}

impl Default for Shots {
    fn default() -> Shots {
        Shots { file: None, count: 5 }
    }
}

impl TaskSource {
    /// Reads the questions and makes their prompts. With `subjects` only those are read.
    ///
    /// # Errors
    /// A file cannot be read, a line is no question, a subject is missing, or there are fewer examples than wanted.
    pub fn read(&self, shots: &Shots, subjects: Option<&[String]>) -> Result<Task, Error> {
        let wanted = |name: &str| subjects.is_none_or(|subjects| subjects.iter().any(|subject| subject == name));
        let own_shots = shots.file.as_deref().map(read_json_lines).transpose()?;
        let (name, groups) = match self {
            TaskSource::Mmlu(folder) => {
                let folder = with_subfolder(folder, "mmlu", "test");
                let names = mmlu_subjects(&folder)?;
                let mut groups = Vec::new();
                for name in names.into_iter().filter(|name| wanted(name)) {
                    let rows = read_table(&folder.join("test").join(format!("{name}_test.csv")), &name)?;
                    let shots = match &own_shots {
                        Some(shots) => for_subject(shots, &name),
                        None => read_table(&folder.join("dev").join(format!("{name}_dev.csv")), &name)?,
                    };
                    groups.push((name, rows, shots));
                }
                ("mmlu".to_owned(), groups)
            }
            TaskSource::Gsm8k(folder) => {
                let folder = with_subfolder(folder, "gsm8k", "test.jsonl");
                let shots = match own_shots {
                    Some(shots) => shots,
                    None => read_json_lines(&folder.join("train.jsonl"))?,
                };
                let rows = read_json_lines(&folder.join("test.jsonl"))?;
                ("gsm8k".to_owned(), vec![(String::new(), rows, shots)])
            }
            TaskSource::File(path) => {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let groups = by_subject(read_json_lines(path)?).into_iter().filter(|(name, _)| wanted(name));
                let shots = own_shots.unwrap_or_default();
                (name, groups.map(|(name, rows)| (name.clone(), rows, for_subject(&shots, &name))).collect())
            }
        };
        let without = matches!(self, TaskSource::File(_)) && shots.file.is_none();
        let count = if without { 0 } else { shots.count };
        if let Some(missing) = subjects.unwrap_or(&[]).iter().find(|name| groups.iter().all(|(have, ..)| have != *name))
        {
            return Err(Error::NoSubject { subject: missing.clone() });
        }
        let subjects = groups.into_iter().map(|(name, rows, shots)| subject(name, &rows, &shots, count));
        Ok(Task { name, subjects: subjects.collect::<Result<_, _>>()? })
    }
}

/// The folder, or a folder of this name in it, whichever has an entry of that name.
fn with_subfolder(folder: &Path, name: &str, entry: &str) -> PathBuf {
    let inner = folder.join(name);
    if !folder.join(entry).exists() && inner.join(entry).exists() { inner } else { folder.to_owned() }
}

/// In alphabetical order.
fn mmlu_subjects(folder: &Path) -> Result<Vec<String>, Error> {
    let folder = folder.join("test");
    let error = |cause| Error::File { path: folder.clone(), cause };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix("_test.csv")).map(str::to_owned));
    }
    if names.is_empty() {
        return Err(error(std::io::Error::other("no tables called SUBJECT_test.csv in it")));
    }
    names.sort();
    Ok(names)
}

fn subject(name: String, rows: &[Row], shots: &[Row], count: usize) -> Result<Subject, Error> {
    if shots.len() < count {
        return Err(Error::TooFewShots { subject: name, have: shots.len(), wanted: count });
    }
    let kind = rows.first().map(|row| std::mem::discriminant(&row.answer));
    if shots[..count].iter().any(|shot| kind != Some(std::mem::discriminant(&shot.answer))) {
        return Err(Error::OtherShots { subject: name });
    }
    let chosen = matches!(rows.first().map(|row| &row.answer), Some(RowAnswer::Choice { .. }));
    let mut prefix = if chosen { multiple_choice::description(&name) } else { String::new() };
    for shot in &shots[..count] {
        prefix += &match &shot.answer {
            RowAnswer::Choice { choices, right } => multiple_choice::example(shot, choices, *right),
            RowAnswer::Worked(answer) => generated::example(shot, answer),
        };
    }
    let questions = rows.iter().enumerate().map(|(index, row)| match &row.answer {
        RowAnswer::Choice { choices, right } => multiple_choice::question(index, row, choices, *right),
        RowAnswer::Worked(answer) => generated::question(index, row, answer),
    });
    Ok(Subject { questions: questions.collect(), name, prefix })
}

/// The rows of a subject; all where there are none of it.
fn for_subject(rows: &[Row], subject: &str) -> Vec<Row> {
    let own: Vec<Row> = rows.iter().filter(|row| row.subject == subject).cloned().collect();
    if own.is_empty() { rows.to_vec() } else { own }
}

/// Subjects in the order in which they first come up.
fn by_subject(rows: Vec<Row>) -> Vec<(String, Vec<Row>)> {
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|(name, _)| *name == row.subject) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((row.subject.clone(), vec![row])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Expected;

    fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn tables_are_read_with_and_without_a_header() {
        let folder = tempfile::tempdir().unwrap();
        file(&folder, "dev/some_thing_dev.csv", "\"Is it\n\"\"so\"\"?\",yes,no,maybe,never,A\n");
        file(
            &folder,
            "test/some_thing_test.csv",
            "question,choice0,choice1,choice2,choice3,answer\n  Why? ,a,b,\"c, d\",e,2\n",
        );
        let shots = Shots { count: 1, ..Shots::default() };
        let task = TaskSource::Mmlu(folder.path().to_owned()).read(&shots, None).unwrap();
        let subject = &task.subjects[0];
        assert_eq!(
            subject.prefix,
            "The following are multiple choice questions (with answers) about some thing.\n\n\
             Is it\n\"so\"?\nA. yes\nB. no\nC. maybe\nD. never\nAnswer: A\n\n"
        );
        assert_eq!(subject.questions[0].text, "Why?\nA. a\nB. b\nC. c, d\nD. e\nAnswer:");
        let continuations = [" A", " B", " C", " D"].map(str::to_owned).to_vec();
        assert_eq!(subject.questions[0].expected, Expected::Choice { continuations, right: 2 });
        let two = Shots { count: 2, ..Shots::default() };
        assert!(matches!(
            TaskSource::Mmlu(folder.path().to_owned()).read(&two, None),
            Err(Error::TooFewShots { have: 1, wanted: 2, .. })
        ));
        let nosuch = ["nosuch".to_owned()];
        assert!(matches!(
            TaskSource::Mmlu(folder.path().to_owned()).read(&shots, Some(&nosuch)),
            Err(Error::NoSubject { .. })
        ));
    }

    #[test]
    fn word_problems_take_their_examples_from_the_train_file() {
        let folder = tempfile::tempdir().unwrap();
        file(&folder, "gsm8k/train.jsonl", "{\"question\": \"1 + 1?\", \"answer\": \"1 + 1 = 2\\n#### 2\"}\n");
        file(&folder, "gsm8k/test.jsonl", "{\"question\": \"2 + 2?\", \"answer\": \"#### 4\"}\n");
        let shots = Shots { count: 1, ..Shots::default() };
        let task = TaskSource::Gsm8k(folder.path().to_owned()).read(&shots, None).unwrap();
        assert_eq!(task.subjects[0].prefix, "Question: 1 + 1?\nAnswer: 1 + 1 = 2\n#### 2\n\n");
        assert_eq!(task.subjects[0].questions[0].text, "Question: 2 + 2?\nAnswer:");
    }

    #[test]
    fn a_file_groups_its_questions_by_subject_and_takes_examples_of_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let line = |subject: &str, question: &str| {
            format!(
                "{{\"subject\": \"{subject}\", \"question\": \"{question}\", \"choices\": [\"x\", \"y\"], \"answer\": \"B\"}}\n"
            )
        };
        let questions = file(&folder, "q.jsonl", &(line("a", "1") + &line("b", "2") + &line("a", "3")));
        let shots = file(&folder, "s.jsonl", &(line("b", "4") + &line("c", "5")));
        let source = TaskSource::File(questions);
        let task = source.read(&Shots::default(), None).unwrap();
        let names: Vec<_> = task.subjects.iter().map(|s| (s.name.as_str(), s.questions.len())).collect();
        assert_eq!(names, [("a", 2), ("b", 1)]);
        assert!(task.subjects[0].prefix.ends_with("about a.\n\n"), "no examples where none are given");
        let task = source.read(&Shots { file: Some(shots), count: 1 }, None).unwrap();
        assert!(task.subjects.iter().all(|subject| subject.prefix.ends_with("4\nA. x\nB. y\nAnswer: B\n\n")));
    }
}
