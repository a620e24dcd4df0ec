//! Weighted words to the windows a CLIP text encoder reads, as A1111 fills them. No tensors.

/// What an encoder's windows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowMarks {
    /// Stands first.
    pub start: u32,
    /// Stands after the last word.
    pub end: u32,
    /// Fills the rest.
    pub pad: u32,
    /// A comma of its own, where the vocabulary has one.
    pub comma: Option<u32>,
    /// Tokens of a window, start and end counted.
    pub length: usize,
}

/// A piece of a prompt as tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// What stays in one window: one token, or the vectors of an embedding.
    Word {
        /// Without marks.
        ids: Vec<u32>,
        /// For each of them.
        weight: f32,
    },
    /// What follows begins a new window.
    Break,
}

/// What the encoder reads at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Start mark, words, end mark, padding: as many as the encoder reads.
    pub ids: Vec<u32>,
    /// One a token; 1 for marks and padding.
    pub weights: Vec<f32>,
}

/// Words within so many tokens after a comma follow it into the next window rather than being torn from each other: A1111's
/// `comma_padding_backtrack`, at its default.
const COMMA_BACKTRACK: usize = 20;

/// Fills as many windows as the pieces need, at least one (A1111's `tokenize_line`).
pub fn windows(pieces: &[Piece], marks: WindowMarks) -> Vec<Window> {
    let mut filling = Filling { marks, done: Vec::new(), open: Vec::new(), comma: None };
    for piece in pieces {
        match piece {
            Piece::Break => filling.close(),
            Piece::Word { ids, weight } => filling.word(ids, *weight),
        }
    }
    if !filling.open.is_empty() || filling.done.is_empty() {
        filling.close();
    }
    filling.done
}

struct Filling {
    marks: WindowMarks,
    done: Vec<Window>,
    /// Words of the window that is being filled.
    open: Vec<(u32, f32)>,
    /// Where its last comma stands.
    comma: Option<usize>,
}

impl Filling {
    fn room(&self) -> usize {
        self.marks.length - 2
    }

    fn word(&mut self, ids: &[u32], weight: f32) {
        let is_full = self.open.len() == self.room();
        if ids.first().copied() == self.marks.comma {
            self.comma = Some(self.open.len());
        } else if let Some(comma) = self.comma.filter(|comma| is_full && self.open.len() - comma <= COMMA_BACKTRACK) {
            let moved = self.open.split_off(comma + 1);
            self.close();
            self.open = moved;
        }
        if !self.open.is_empty() && self.open.len() + ids.len() > self.room() {
            self.close();
        }
        // Only an embedding that fits no window is torn.
        for id in ids {
            if self.open.len() == self.room() {
                self.close();
            }
            self.open.push((*id, weight));
        }
    }

    fn close(&mut self) {
        let WindowMarks { start, end, pad, length, .. } = self.marks;
        self.comma = None;
        let (mut ids, mut weights) = (vec![start], vec![1.0]);
        for (id, weight) in self.open.drain(..) {
            ids.push(id);
            weights.push(weight);
        }
        ids.resize(length, end);
        weights.resize(length, 1.0);
        // Where padding has a token of its own, it begins after the first end mark, also one that the prompt spells out.
        if let Some(first) = ids.iter().position(|id| *id == end).filter(|_| pad != end) {
            ids[first + 1..].fill(pad);
        }
        self.done.push(Window { ids, weights });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1000;
    const END: u32 = 1001;
    const COMMA: u32 = 7;
    const MARKS: WindowMarks = WindowMarks { start: START, end: END, pad: END, comma: Some(COMMA), length: 77 };

    fn words(ids: impl IntoIterator<Item = u32>) -> Vec<Piece> {
        ids.into_iter().map(|id| Piece::Word { ids: vec![id], weight: 1.0 }).collect()
    }

    /// Each window's words.
    fn filled(pieces: &[Piece]) -> Vec<Vec<u32>> {
        let within = |window: Window| {
            assert_eq!((window.ids.len(), window.weights.len(), window.ids[0]), (77, 77, START));
            let end = window.ids.iter().position(|id| *id == END).expect("an end mark");
            assert!(window.ids[end..].iter().all(|id| *id == END));
            window.ids[1..end].to_vec()
        };
        windows(pieces, MARKS).into_iter().map(within).collect()
    }

    /// 100, 101, ...: so many words without a comma.
    fn run(count: u32) -> Vec<u32> {
        (100..100 + count).collect()
    }

    #[test]
    fn seventy_five_words_make_a_window() {
        assert_eq!(filled(&[]), [run(0)]);
        assert_eq!(filled(&words([])), [run(0)]);
        assert_eq!(filled(&words(run(75))), [run(75)]);
        assert_eq!(filled(&words(run(76))), [run(75), vec![175]]);
        let two = [words(run(40)), words(run(40))].concat();
        assert_eq!(filled(&two), [[run(40), run(35)].concat(), (135..140).collect()]);
    }

    #[test]
    fn words_after_a_comma_stay_together() {
        // A comma among the last twenty takes what follows it into the next window.
        let near = [run(60), vec![COMMA], run(30)].concat();
        assert_eq!(filled(&words(near)), [[run(60), vec![COMMA]].concat(), run(30)]);
        let edge = [run(55), vec![COMMA], run(30)].concat();
        assert_eq!(filled(&words(edge)), [[run(55), vec![COMMA]].concat(), run(30)]);
        let far = [run(54), vec![COMMA], run(30)].concat();
        assert_eq!(filled(&words(far)), [[run(54), vec![COMMA], run(20)].concat(), (120..130).collect()]);
        // A comma that finds its window full opens the next, and one that fills it stays.
        let full = [run(75), vec![COMMA], run(3)].concat();
        assert_eq!(filled(&words(full)), [run(75), [vec![COMMA], run(3)].concat()]);
        let last = [run(74), vec![COMMA], run(3)].concat();
        assert_eq!(filled(&words(last)), [[run(74), vec![COMMA]].concat(), run(3)]);
    }

    #[test]
    fn breaks_begin_windows_and_leave_none_behind() {
        let all = [words(run(2)), vec![Piece::Break], words(run(3)), vec![Piece::Break]].concat();
        assert_eq!(filled(&all), [run(2), run(3)]);
        assert_eq!(filled(&[Piece::Break]), [run(0)]);
        assert_eq!(filled(&[vec![Piece::Break; 2], words(run(1))].concat()), [vec![], vec![], run(1)]);
    }

    #[test]
    fn an_embeddings_vectors_stay_together() {
        let embedding = |count: u32| vec![Piece::Word { ids: run(count), weight: 1.0 }];
        assert_eq!(filled(&[words(run(70)), embedding(5)].concat()), [[run(70), run(5)].concat()]);
        assert_eq!(filled(&[words(run(70)), embedding(6)].concat()), [run(70), run(6)]);
        // More than a window holds.
        assert_eq!(filled(&embedding(80)), [run(75), (175..180).collect()]);
    }

    #[test]
    fn weights_follow_their_words() {
        let near = [run(60), vec![COMMA]].concat();
        let heavy = run(30).into_iter().map(|id| Piece::Word { ids: vec![id], weight: 1.5 });
        let pieces: Vec<Piece> = words(near).into_iter().chain(heavy).collect();
        let made = windows(&pieces, MARKS);
        assert!(made[0].weights.iter().all(|weight| *weight == 1.0));
        assert_eq!(made[1].weights[..32], [vec![1.0], vec![1.5; 30], vec![1.0]].concat());
    }

    #[test]
    fn padding_of_its_own_begins_after_the_first_end_mark() {
        let marks = WindowMarks { pad: 0, length: 8, ..MARKS };
        let ids = |pieces: &[Piece]| windows(pieces, marks)[0].ids.clone();
        assert_eq!(ids(&words([5, 6])), [START, 5, 6, END, 0, 0, 0, 0]);
        assert_eq!(ids(&words([5, END, 6])), [START, 5, END, 0, 0, 0, 0, 0]);
        let marks = WindowMarks { length: 8, ..MARKS };
        let same = windows(&words([5, END, 6]), marks);
        assert_eq!(same[0].ids, [START, 5, END, 6, END, END, END, END], "where both are one token, nothing is cut");
    }
}
