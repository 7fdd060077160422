package patterns

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	// maxPlaces bounds the places of all patterns together: a set of states is
	// worked out over them.
	maxPlaces = 50_000
	// maxStates bounds what is kept of one set: about two MiB of transitions.
	maxStates = 4096
	// ascii is how many runes have a transition of their own.
	ascii = 0x80
	// minLife is how many bytes a full cache has to have served, for each state,
	// to be worth filling again.
	minLife = 4
)

// nfa is all patterns as one automaton: the places of all programs in one list.
type nfa struct {
	inst    []syntax.Inst // Out and Arg are indexes into inst
	start   []uint32
	owner   []int32 // of a match instruction: the pattern
	pattern int
}

// newNFA joins programs; nil when they are too large.
func newNFA(progs []*syntax.Prog) *nfa {
	n := &nfa{pattern: len(progs)}
	for i, p := range progs {
		base := uint32(len(n.inst))
		if len(n.inst)+len(p.Inst) > maxPlaces {
			return nil
		}
		for _, in := range p.Inst {
			in.Out += base
			if in.Op == syntax.InstAlt || in.Op == syntax.InstAltMatch {
				in.Arg += base
			}
			n.inst = append(n.inst, in)
			n.owner = append(n.owner, int32(i))
		}
		n.start = append(n.start, base+uint32(p.Start))
	}
	return n
}

// state is a set of places, before what needs no rune was followed, and what the
// rune before them was.
type state struct {
	places []uint32
	before rune // a stand-in for its kind; see kindOf
	// next has the state after each ASCII rune, nil where it was not worked out.
	next [ascii]atomic.Pointer[state]
	// found has the patterns that match if the text ends here, nil where it was
	// not worked out.
	found atomic.Pointer[[]uint64]
}

// cache has the states that were met.
type cache struct {
	start atomic.Pointer[state] // of the present generation
	bytes atomic.Int64          // that it has served
	off   atomic.Bool           // it is not worth it
	// filling says that there are so many states that bytes are counted.
	filling atomic.Bool

	mu     sync.Mutex // for what is worked out
	states map[string]*state
}

// match walks over the text; ok is false when the cache cannot tell.
func (c *cache) match(n *nfa, text string) (found []uint64, ok bool) {
	if c.off.Load() {
		return nil, false
	}
	s := c.start.Load()
	if s == nil {
		if s = c.begin(n); s == nil {
			return nil, false
		}
	}
	for i := 0; i < len(text); i++ {
		b := text[i]
		if b >= ascii {
			return nil, false
		}
		next := s.next[b].Load()
		if next == nil {
			if next = c.step(n, s, rune(b)); next == nil {
				return nil, false
			}
		}
		s = next
	}
	if c.filling.Load() { // only then it matters how much it serves
		c.bytes.Add(int64(len(text)))
	}
	f := s.found.Load()
	if f == nil {
		f = c.end(n, s)
	}
	return *f, true
}

// begin makes the first state of a generation.
func (c *cache) begin(n *nfa) *state {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.start.Load(); s != nil {
		return s
	}
	s := c.intern(slices.Clone(n.start), -1)
	c.start.Store(s)
	return s
}

// step works out where a rune leads; nil when the cache is full, and empty again.
func (c *cache) step(n *nfa, s *state, r rune) *state {
	c.mu.Lock()
	defer c.mu.Unlock()
	if next := s.next[r].Load(); next != nil {
		return next
	}
	var places []uint32
	n.follow(s, r, func(in *syntax.Inst, _ uint32) {
		if in.Op != syntax.InstMatch && in.MatchRune(r) {
			places = append(places, in.Out)
		}
	})
	next := c.intern(places, kindOf(r))
	if next != nil {
		s.next[r].Store(next)
	}
	return next
}

// end works out which patterns match when the text ends.
func (c *cache) end(n *nfa, s *state) *[]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := make([]uint64, (n.pattern+63)/64)
	n.follow(s, -1, func(in *syntax.Inst, at uint32) {
		if in.Op == syntax.InstMatch {
			p := n.owner[at]
			found[p/64] |= 1 << (p % 64)
		}
	})
	s.found.Store(&found)
	return &found
}

// intern returns the state of a set of places; the caller holds the lock. It
// returns nil when there are too many states, and begins a new generation: those
// who still walk over the old one finish on it, or fall back once.
func (c *cache) intern(places []uint32, before rune) *state {
	slices.Sort(places)
	places = slices.Compact(places)
	key := make([]byte, 0, 4*len(places)+4)
	key = binary.LittleEndian.AppendUint32(key, uint32(before))
	for _, p := range places {
		key = binary.LittleEndian.AppendUint32(key, p)
	}
	if s := c.states[string(key)]; s != nil {
		return s
	}
	if len(c.states) >= maxStates {
		if c.bytes.Swap(0) < minLife*maxStates {
			c.off.Store(true)
		}
		c.states = nil
		c.start.Store(nil)
		c.filling.Store(false)
		return nil
	}
	if c.states == nil {
		c.states = map[string]*state{}
	}
	s := &state{places: places, before: before}
	c.states[string(key)] = s
	if len(c.states) == maxStates/2 {
		c.filling.Store(true)
	}
	return s
}

// kindOf stands for all runes that mean the same to the empty-width assertions:
// the beginning, a word character, a newline, and the rest.
func kindOf(r rune) rune {
	switch {
	case r < 0:
		return -1
	case syntax.IsWordChar(r):
		return 'a'
	case r == '\n':
		return '\n'
	}
	return ' '
}

// follow calls visit for every place that consumes a rune or matches, among those
// that a state reaches without a rune when the next one is r; -1 for the end.
func (n *nfa) follow(s *state, r rune, visit func(*syntax.Inst, uint32)) {
	flags := syntax.EmptyOpContext(s.before, r)
	seen := make(map[uint32]struct{}, 2*len(s.places))
	stack := slices.Clone(s.places)
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, ok := seen[at]; ok {
			continue
		}
		seen[at] = struct{}{}
		switch in := &n.inst[at]; in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			stack = append(stack, in.Out, in.Arg)
		case syntax.InstCapture, syntax.InstNop:
			stack = append(stack, in.Out)
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(in.Arg)&^flags == 0 {
				stack = append(stack, in.Out)
			}
		case syntax.InstFail:
		default: // a match, or one of the kinds of runes
			visit(in, at)
		}
	}
}
