//! Reads questions from files: MMLU's tables (the original ones, or with a header line), and JSON lines.
//!
//! A line of JSON is one question, in one of two forms that a file does not mix. `subject` may be left out:
//!
//! ```json
//! {"subject": "addition", "question": "What is 1 + 1?", "choices": ["2", "3"], "answer": 0}
//! {"question": "Ivy has 2 pens and buys 3. How many has she?", "answer": "2 + 3 = 5\n#### 5"}
//! ```
//!
//! `answer` is the index of the right choice, or its letter, capital or small; without `choices` it is the worked answer and ends in
//! `#### ` and a number.

use crate::Error;
use serde::Deserialize;
use std::path::Path;

/// Most choices: as many as there are letters.
const MOST_CHOICES: usize = 26;

/// One question as a file has it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) subject: String,
    pub(super) question: String,
    pub(super) answer: RowAnswer,
}

#[derive(Clone, Debug)]
pub(super) enum RowAnswer {
    Choice { choices: Vec<String>, right: usize },
    Worked(String),
}

/// The rows of one of MMLU's tables.
pub(super) fn read_table(path: &Path, subject: &str) -> Result<Vec<Row>, Error> {
    let wrong = |line: usize, why: String| Error::Question { path: path.to_owned(), line, why };
    let file = std::fs::File::open(path).map_err(|cause| Error::File { path: path.to_owned(), cause })?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(file);
    let mut rows = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(|error| wrong(index + 1, error.to_string()))?;
        let cells: Vec<&str> = record.iter().collect();
        if index == 0 && cells.first() == Some(&"question") && cells.last() == Some(&"answer") {
            continue;
        }
        let [question, choices @ .., answer] = &cells[..] else {
            return Err(wrong(index + 1, "a question, its choices and the answer were expected".to_owned()));
        };
        let choices: Vec<String> = choices.iter().map(|&choice| choice.to_owned()).collect();
        let right = right_choice(answer, choices.len()).map_err(|why| wrong(index + 1, why))?;
        let answer = RowAnswer::Choice { choices, right };
        rows.push(Row { subject: subject.to_owned(), question: (*question).to_owned(), answer });
    }
    if rows.is_empty() {
        return Err(wrong(1, "there is no question".to_owned()));
    }
    Ok(rows)
}

/// Whether a worked answer ends in `#### ` and a number, as the harness reads one.
fn ends_in_number(answer: &str) -> bool {
    let number = answer.rsplit_once("#### ").map_or("", |(_, number)| number);
    number.contains(|c: char| c.is_ascii_digit()) && number.chars().all(|c| c.is_ascii_digit() || "-.,$".contains(c))
}

/// A number from 0, or a letter.
fn right_choice(text: &str, count: usize) -> Result<usize, String> {
    let number = match text.trim().as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
        _ => text.trim().parse().ok(),
    };
    match number {
        _ if !(2..=MOST_CHOICES).contains(&count) => Err(format!("{count} choices; 2 to {MOST_CHOICES} are possible")),
        Some(number) if number < count => Ok(number),
        _ => {
            let letters = format!("a letter from A to {}", char::from(b'A' + (count - 1) as u8));
            Err(format!("answer '{text}' is none of the {count} choices (a number from 0, or {letters})"))
        }
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Line {
    #[serde(default)]
    subject: String,
    question: String,
    choices: Option<Vec<String>>,
    answer: LineAnswer,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "an answer is a number from 0 or a text")]
enum LineAnswer {
    Index(usize),
    Text(String),
}

impl Line {
    fn parse(text: &str) -> Result<Line, String> {
        serde_json::from_str(text).map_err(|error| {
            let is_object = error.is_data() && text.trim_start().starts_with('{');
            let what = if is_object { "no question" } else { "no JSON object" };
            // A line is parsed alone, so to serde each is the first.
            let why = error.to_string().replace(&format!(" at line {} column", error.line()), " at column");
            format!("{what}: {why}; docs/formats/evaluation.md has the format")
        })
    }
}

/// The rows of a file of JSON lines: at least one, all of one form.
pub(super) fn read_json_lines(path: &Path) -> Result<Vec<Row>, Error> {
    let text = std::fs::read_to_string(path).map_err(|cause| Error::File { path: path.to_owned(), cause })?;
    let mut rows: Vec<Row> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |why: String| Error::Question { path: path.to_owned(), line: index + 1, why };
        let line = Line::parse(line).map_err(wrong)?;
        let answer = match (line.choices, line.answer) {
            (Some(choices), answer) => {
                let answer = match answer {
                    LineAnswer::Index(index) => index.to_string(),
                    LineAnswer::Text(text) => text,
                };
                let right = right_choice(&answer, choices.len()).map_err(wrong)?;
                RowAnswer::Choice { choices, right }
            }
            (None, LineAnswer::Text(text)) if ends_in_number(&text) => RowAnswer::Worked(text),
            (None, _) => {
                let why = "without choices, the answer has to be a text that ends in '#### ' and a number, with nothing behind it";
                return Err(wrong(why.to_owned()));
            }
        };
        let row = Row { subject: line.subject, question: line.question, answer };
        if let Some(first) = rows.first()
            && std::mem::discriminant(&first.answer) != std::mem::discriminant(&row.answer)
        {
            return Err(wrong("the file mixes questions with and without choices; make two of it".to_owned()));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Error::Question { path: path.to_owned(), line: 1, why: "there is no question".to_owned() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_questions_are_refused_with_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let good = "{\"question\": \"q\", \"choices\": [\"x\", \"y\"], \"answer\": 1}\n";
        for (wrong, says) in [
            ("{\"question\": \"q\", \"choices\": [\"x\", \"y\"], \"answer\": 2}", "'2' is none of the 2 choices"),
            ("{\"question\": \"q\", \"choices\": [\"x\"], \"answer\": 0}", "1 choices"),
            ("{\"question\": \"q\", \"answer\": \"five\"}", "#### "),
            ("{\"question\": \"q\", \"answer\": \"#### five apples\"}", "#### "),
            ("{\"question\": \"q\", \"answer\": \"#### 5\\n\"}", "nothing behind it"),
            ("{\"question\": \"q\", \"answer\": \"#### 5\"}", "mixes"),
            ("{", "no JSON object: EOF"),
            ("All that is gold", "no JSON object: expected value at column 1; docs/formats/evaluation.md"),
            ("5", "no JSON object: invalid type: integer `5`, expected an object"),
            ("{\"answer\": 1}", "no question: missing field `question`"),
            ("{\"question\": \"q\", \"answer\": -1}", "no question: an answer is a number"),
        ] {
            let path = folder.path().join("wrong.jsonl");
            std::fs::write(&path, format!("{good}{wrong}\n")).unwrap();
            let error = read_json_lines(&path).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(says), "{error}");
            assert!(!error.contains("line 1"), "{error}");
        }
    }

    #[test]
    fn the_right_choice_is_a_number_or_a_letter() {
        for text in ["1", "B", "b", " b\n"] {
            assert_eq!(right_choice(text, 2), Ok(1), "{text}");
        }
        for text in ["c", "C", "2", "-1", "bb", "ä", ""] {
            let said = right_choice(text, 2).unwrap_err();
            assert!(said.contains("none of the 2 choices (a number from 0, or a letter from A to B)"), "{said}");
        }
        assert!(right_choice("26", 26).unwrap_err().contains("A to Z"));
    }
}
