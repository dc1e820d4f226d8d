//! Flash that misbehaves under a running engine: what heals is never noticed, what does not is a clear error that names file and offset. No
//! wrong token, no hang, and later requests are served.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{
    Backend, Budget, Capacity, CpuOptions, Direct, Engine, EngineOptions, Error, Fault, Faults, FlashOptions, Prefetch,
    Session,
};
use moce_gguf::Gguf;
use moce_quant::Format;
use moce_testkit::ModelFile;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Runs a test that must not hang. A busy machine takes seconds.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        // It is done, or has panicked, which `join` passes on.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
    }
}

/// A model of which every layer streams, with faults to be set.
struct Case {
    model: ModelFile,
    faults: Arc<Mutex<Faults>>,
    options: EngineOptions,
    /// Logits of every token, with everything well.
    expected: Vec<Vec<u32>>,
}

impl Case {
    fn new(backend: Backend, prefetch: Prefetch) -> Case {
        let model = ModelFile::new("qwen2moe", Format::Q4_0);
        let faults = Arc::new(Mutex::new(Faults::default()));
        let flash = FlashOptions { backend, faults: Some(Arc::clone(&faults)), ..FlashOptions::default() };
        let cpu = CpuOptions { threads: Some(2), ..CpuOptions::default() };
        let capacity = Some(Capacity::Experts(3));
        let options = EngineOptions { cpu, capacity, flash, prefetch, sessions: 2, ..EngineOptions::default() };
        let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
        let mut session = Session::new(&engine).unwrap();
        let expected = model.tokens.iter().map(|&token| decode(&mut session, token).unwrap()).collect();
        Case { model, faults, options, expected }
    }

    fn open(&self) -> Arc<Engine> {
        Arc::new(Engine::open(&self.model.path, &self.options).unwrap())
    }

    fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    /// Decodes the tokens from `from` on until an error, which is returned; every token before it has the right logits.
    fn decode(&self, session: &mut Session, from: usize) -> Result<(), Error> {
        for (index, &token) in self.model.tokens.iter().enumerate().skip(from) {
            assert!(decode(session, token)? == self.expected[index], "wrong logits of token {index}");
        }
        Ok(())
    }

    /// A cleared session gets right what failed before.
    fn is_served(&self, session: &mut Session) {
        assert!(matches!(session.decode(1), Err(Error::SessionFailed)));
        session.clear().unwrap();
        self.decode(session, 0).unwrap();
    }
}

fn decode(session: &mut Session, token: u32) -> Result<Vec<u32>, Error> {
    session.decode(token)?;
    Ok(session.logits().iter().map(|x| x.to_bits()).collect())
}

/// Every read of the model fails, or the file ends.
fn lasting() -> [(&'static str, Faults); 2] {
    let bad = Faults { bad_ranges: vec![(0, 0..u64::MAX)], ..Faults::default() };
    let ended = Faults { ends: vec![(0, 4096)], ..Faults::default() };
    [("Input/output error", bad), ("ends early", ended)]
}

#[test]
fn a_fault_that_stays_is_an_error_with_file_and_offset_and_the_next_request_is_served() {
    within_a_minute(|| {
        for (backend, prefetch) in [(Backend::Auto, Prefetch::Off), (Backend::Pread, Prefetch::NextLayer)] {
            let case = Case::new(backend, prefetch);
            let engine = case.open();
            let (mut session, mut other) = (Session::new(&engine).unwrap(), Session::new(&engine).unwrap());
            case.model.tokens[..10].iter().for_each(|&token| other.decode(token).unwrap());
            for (part, faults) in lasting() {
                case.set(Faults::default());
                session.clear().unwrap();
                case.model.tokens[..10].iter().for_each(|&token| session.decode(token).unwrap());
                case.set(faults.clone());
                let message = case.decode(&mut session, 10).unwrap_err().to_string();
                assert!(["model.gguf", "at offset", "wanted", part].iter().all(|p| message.contains(p)), "{message}");
                case.set(Faults::default());
                case.is_served(&mut session);
                // Also where a whole prompt was under way, with reads ahead for the next layer.
                session.clear().unwrap();
                case.set(faults);
                let message = session.prompt(&case.model.tokens).unwrap_err().to_string();
                assert!(["model.gguf", "at offset", "wanted", part].iter().all(|p| message.contains(p)), "{message}");
                case.set(Faults::default());
                case.is_served(&mut session);
            }
            // A session that was not running meanwhile goes on as if nothing had happened.
            case.decode(&mut other, 10).unwrap();
        }
    });
}

/// After a failed step some layers have seen tokens that others have not. Nothing brings that back but what replaces it.
#[test]
fn a_failed_session_stays_so_until_it_is_cleared_or_goes_back_to_before() {
    within_a_minute(|| {
        let case = Case::new(Backend::Pread, Prefetch::Off);
        let mut session = Session::new(&case.open()).unwrap();
        let fail = |session: &mut Session| {
            case.set(lasting()[0].1.clone());
            case.decode(session, session.position()).unwrap_err();
            case.set(Faults::default());
        };
        case.model.tokens[..10].iter().for_each(|&token| session.decode(token).unwrap());
        let good = session.snapshot();
        fail(&mut session);
        let refuses = |session: &mut Session| {
            assert!(matches!(session.cache_state(), Err(Error::SessionFailed)));
            assert!(matches!(session.decode(1), Err(Error::SessionFailed)));
        };
        refuses(&mut session);
        let bad = session.snapshot();
        session.go_back(&bad).unwrap();
        refuses(&mut session);
        session.go_back(&good).unwrap();
        session.cache_state().unwrap();
        case.decode(&mut session, 10).unwrap();

        session.go_back(&good).unwrap();
        fail(&mut session);
        session.restart();
        refuses(&mut session);
        case.is_served(&mut session);
    });
}

#[test]
fn faults_that_heal_are_not_noticed() {
    within_a_minute(|| {
        for backend in [Backend::Auto, Backend::Pread] {
            let case = Case::new(backend, Prefetch::Speculate);
            let mut session = Session::new(&case.open()).unwrap();
            case.set(Faults { short: 0.3, delays: 0.3, ..Faults::default() });
            case.decode(&mut session, 0).unwrap();
            // Reads fail so far apart that no retry fails, too: a token has some 20 of them.
            let schedule = (0..1_000_000).step_by(97).map(|read| (read, Fault::Error(5))).collect();
            case.set(Faults { schedule, ..Faults::default() });
            for _ in 0..4 {
                session.clear().unwrap();
                case.decode(&mut session, 0).unwrap();
            }
        }
    });
}

#[test]
fn random_faults_give_right_tokens_or_errors() {
    within_a_minute(|| {
        for backend in [Backend::Auto, Backend::Pread] {
            let case = Case::new(backend, Prefetch::NextLayer);
            let engine = case.open();
            let mut sessions = [Session::new(&engine).unwrap(), Session::new(&engine).unwrap()];
            case.set(Faults { errors: 0.08, short: 0.2, delays: 0.2, ..Faults::default() });
            let (mut errors, mut tokens) = (0, 0);
            for _ in 0..12 {
                // The sessions take turns, and each goes on while the other fails.
                let mut ended = [false; 2];
                for (index, &token) in case.model.tokens.iter().enumerate() {
                    for (session, ended) in sessions.iter_mut().zip(&mut ended).filter(|(_, ended)| !**ended) {
                        match decode(session, token) {
                            Ok(logits) => {
                                assert!(logits == case.expected[index], "{backend}: wrong logits of token {index}");
                                tokens += 1;
                            }
                            Err(error) => {
                                assert!(matches!(error, Error::Flash(_)), "{backend}: {error}");
                                errors += 1;
                                *ended = true;
                            }
                        }
                    }
                }
                sessions.iter_mut().for_each(|session| session.clear().unwrap());
            }
            assert!(errors > 0 && tokens > 0, "{backend}: {errors} errors, {tokens} tokens");
            case.set(Faults::default());
            case.decode(&mut sessions[0], 0).unwrap();
        }
    });
}

#[test]
fn a_model_that_cannot_be_read_whole_is_not_opened() {
    within_a_minute(|| {
        let mut case = Case::new(Backend::Pread, Prefetch::Off);
        case.options.capacity = None;
        case.options.memory = Budget::All;
        for (part, faults) in lasting() {
            case.set(faults);
            let message = Engine::open(&case.model.path, &case.options).map(|_| ()).unwrap_err().to_string();
            assert!(["model.gguf", "at offset", part].iter().all(|p| message.contains(p)), "{message}");
        }
    });
}

/// Warm starts read in the background: what fails there is read again when it is needed.
#[test]
fn a_fault_in_the_background_concerns_nobody() {
    within_a_minute(|| {
        let case = Case::new(Backend::Pread, Prefetch::Off);
        let state = {
            let mut session = Session::new(&case.open()).unwrap();
            case.decode(&mut session, 0).unwrap();
            session.cache_state().unwrap()
        };
        let engine = case.open();
        case.set(lasting()[0].1.clone());
        Session::new(&engine).unwrap().warm_start(&state).unwrap();
        // A failing request waits for what is under way.
        Session::new(&engine).unwrap().prompt(&case.model.tokens).unwrap_err();
        case.set(Faults::default());
        let mut session = Session::new(&engine).unwrap();
        case.decode(&mut session, 0).unwrap();
    });
}

/// The open descriptor's size and time are looked at, not the name's.
#[test]
fn a_file_that_is_changed_in_place_while_it_decodes_gives_no_wrong_token() {
    within_a_minute(|| {
        for (direct, prefetch) in [(Direct::Auto, Prefetch::Off), (Direct::Off, Prefetch::NextLayer)] {
            let mut case = Case::new(Backend::Auto, prefetch);
            (case.options.flash.faults, case.options.flash.direct) = (None, direct);
            let engine = case.open();
            let mut session = Session::new(&engine).unwrap();
            case.model.tokens[..10].iter().for_each(|&token| session.decode(token).unwrap());
            scribble(&case.model.path);
            let message = case.decode(&mut session, 10).unwrap_err().to_string();
            assert!(["model.gguf", "changed while in use"].iter().all(|p| message.contains(p)), "{message}");
            // It stays so: no request gets a token from what may be another model.
            let mut other = Session::new(&engine).unwrap();
            let message = other.prompt(&case.model.tokens).unwrap_err().to_string();
            assert!(message.contains("changed while in use"), "{message}");
        }
    });
}

/// What a failed step has read stays in its slots: neither another session nor the same one, gone back, computes with it.
#[test]
fn what_was_read_before_a_change_was_noticed_is_not_used_afterwards() {
    within_a_minute(|| {
        let mut case = Case::new(Backend::Auto, Prefetch::Off);
        case.options.flash.faults = None;
        let engine = case.open();
        let mut sessions = [Session::new(&engine).unwrap(), Session::new(&engine).unwrap()];
        for session in &mut sessions {
            case.model.tokens[..10].iter().for_each(|&token| session.decode(token).unwrap());
        }
        let snapshots = sessions.each_ref().map(Session::snapshot);
        scribble(&case.model.path);
        // Each attempt would find the experts of one more layer resident.
        for _ in 0..2 * engine.hyperparameters().layers {
            for (session, snapshot) in sessions.iter_mut().zip(&snapshots) {
                let message = case.decode(session, 10).unwrap_err().to_string();
                assert!(message.contains("changed while in use"), "{message}");
                session.go_back(snapshot).unwrap();
            }
        }
        // Scoring looks at the files before it begins, whatever is resident.
        let message = sessions[0].score(&case.model.tokens[10..], &mut |_, _| {}).unwrap_err().to_string();
        assert!(message.contains("changed while in use"), "{message}");
        assert_eq!(sessions[0].position(), 10);
    });
}

/// Read in the background, and resident when the next token needs it: still nothing that was read after the change is used.
#[test]
fn a_warm_start_from_a_file_that_changes_gives_no_wrong_token() {
    within_a_minute(|| {
        let mut case = Case::new(Backend::Pread, Prefetch::Off);
        case.options.flash.faults = None;
        // Enough slots that a token can find all its experts read in the background.
        case.options.capacity = Some(Capacity::Experts(11));
        let state = {
            let mut session = Session::new(&case.open()).unwrap();
            case.decode(&mut session, 0).unwrap();
            session.cache_state().unwrap()
        };
        let engine = case.open();
        scribble(&case.model.path);
        let mut session = Session::new(&engine).unwrap();
        session.warm_start(&state).unwrap();
        let message = case.decode(&mut session, 0).unwrap_err().to_string();
        assert!(message.contains("changed while in use"), "{message}");
    });
}

/// Some read the header once and load several times; and of a model without experts nothing is read after it was loaded.
#[test]
fn a_file_that_changed_since_its_header_was_read_is_not_loaded() {
    for name in ["llama", "qwen2moe"] {
        let model = ModelFile::new(name, Format::Q4_0);
        let gguf = Gguf::open(&model.path).unwrap();
        let options = EngineOptions::default();
        Engine::load(&gguf, &options).unwrap();
        scribble(&model.path);
        let message = Engine::load(&gguf, &options).map(|_| ()).unwrap_err().to_string();
        assert!(["model.gguf", "changed while in use"].iter().all(|p| message.contains(p)), "{name}: {message}");
    }
}

/// Overwrites the weights of a model with others, without changing its size.
fn scribble(path: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    let start = bytes / 10;
    let mut old = vec![0; (bytes - start) as usize];
    file.read_exact_at(&mut old, start).unwrap();
    old.iter_mut().for_each(|byte| *byte ^= 0x11);
    // Times of the file system may be as coarse as a timer tick.
    std::thread::sleep(Duration::from_millis(20));
    file.write_all_at(&old, start).unwrap();
}
