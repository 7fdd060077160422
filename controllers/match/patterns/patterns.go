// Package patterns matches one text against many regular expressions at once,
// each for all of the text. What a hundred rules say of a tag costs about as much
// as walking over it once.
//
// # How
//
// The expressions (RE2 syntax, as package regexp) are compiled to one automaton
// that is in many places at a time, and that is made deterministic while it runs:
// a state is the set of places, and where each byte leads from it is worked out
// when it is first needed, and then kept. States are bounded; when there are too
// many, all are forgotten, and a set that forgets too often falls back to package
// regexp, as for text that is not ASCII.
package patterns

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"
)

// MaxLength is the longest pattern, in bytes.
const MaxLength = 1024

// Error says what is wrong with a pattern, and where.
type Error struct {
	// Index is the pattern's place in the list.
	Index int
	// Pattern is all of it, Fragment the part with the mistake.
	Pattern, Fragment string
	// Reason says what is wrong ("missing closing ]").
	Reason string
	// Offset is where Fragment begins, in bytes.
	Offset int
}

// Error counts the position in characters from 1.
func (e *Error) Error() string {
	at := utf8.RuneCountInString(e.Pattern[:e.Offset]) + 1
	return fmt.Sprintf("%q is no regular expression: %s, at position %d: %q", e.Pattern, e.Reason, at, e.Fragment)
}

// Check says what is wrong with a pattern, as an *Error; nil if it is good.
func Check(pattern string) error {
	_, err := parse(0, pattern)
	return err
}

// parse reads one pattern.
func parse(index int, pattern string) (*syntax.Regexp, error) {
	if len(pattern) > MaxLength {
		return nil, &Error{Index: index, Pattern: pattern, Offset: MaxLength, Fragment: pattern[MaxLength:min(len(pattern), MaxLength+10)],
			Reason: fmt.Sprintf("longer than %d characters", MaxLength)}
	}
	re, err := syntax.Parse(pattern, syntax.Perl)
	var se *syntax.Error
	if errors.As(err, &se) {
		return nil, &Error{Index: index, Pattern: pattern, Reason: se.Code.String(), Fragment: se.Expr, Offset: offset(pattern, se)}
	}
	if err != nil {
		return nil, &Error{Index: index, Pattern: pattern, Reason: err.Error(), Fragment: pattern}
	}
	return re, nil
}

// offset finds the mistake: the parser tells what it stumbled over, and not
// always where that stands.
func offset(pattern string, e *syntax.Error) int {
	switch e.Code {
	case syntax.ErrMissingParen:
		return unbalanced(pattern)
	case syntax.ErrUnexpectedParen:
		return unbalanced(pattern)
	case syntax.ErrTrailingBackslash:
		return len(pattern) - 1
	case syntax.ErrInvalidUTF8:
		for i, r := range pattern {
			if r == utf8.RuneError {
				if _, n := utf8.DecodeRuneInString(pattern[i:]); n == 1 {
					return i
				}
			}
		}
	default: // the fragment stands there as it is
	}
	return max(0, strings.Index(pattern, e.Expr))
}

// unbalanced finds the parenthesis without a partner: the first one that closes
// nothing, else the last one that is never closed.
func unbalanced(pattern string) int {
	var open []int
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			if strings.HasPrefix(pattern[i:], `\Q`) {
				if end := strings.Index(pattern[i:], `\E`); end > 0 {
					i += end
				} else {
					i = len(pattern)
				}
			}
			i++
		case '[':
			i = endOfClass(pattern, i)
		case '(':
			open = append(open, i)
		case ')':
			if len(open) == 0 {
				return i
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) == 0 {
		return 0
	}
	return open[len(open)-1]
}

// endOfClass returns the index of the bracket that closes the class at i.
func endOfClass(pattern string, i int) int {
	j := i + 1
	if j < len(pattern) && pattern[j] == '^' {
		j++
	}
	if j < len(pattern) && pattern[j] == ']' { // the first one is a member
		j++
	}
	for ; j < len(pattern); j++ {
		switch pattern[j] {
		case '\\':
			j++
		case '[':
			if strings.HasPrefix(pattern[j:], "[:") {
				if end := strings.Index(pattern[j:], ":]"); end > 0 {
					j += end + 1
				}
			}
		case ']':
			return j
		}
	}
	return len(pattern)
}

// Set holds compiled patterns. It is safe for parallel use.
type Set struct {
	all   []*regexp.Regexp // each for the whole text
	nfa   *nfa             // nil when the patterns are too large together
	cache cache
}

// Compile compiles patterns. An empty one matches everything. The error is an
// *Error of the first that is wrong.
func Compile(patterns []string) (*Set, error) {
	s := &Set{}
	var progs []*syntax.Prog
	for i, p := range patterns {
		if p == "" {
			p = `(?s).*`
		}
		re, err := parse(i, p)
		if err != nil {
			return nil, err
		}
		// A group, so that alternatives stay together; \z and not $, which could
		// mean the end of a line.
		whole, err := regexp.Compile(`\A(?:` + p + `)\z`)
		if err != nil {
			return nil, &Error{Index: i, Pattern: p, Reason: err.Error(), Fragment: p}
		}
		prog, err := syntax.Compile(re.Simplify())
		if err != nil {
			return nil, &Error{Index: i, Pattern: p, Reason: err.Error(), Fragment: p}
		}
		s.all, progs = append(s.all, whole), append(progs, prog)
	}
	s.nfa = newNFA(progs)
	return s, nil
}

// Words is the length of Match's result: one bit a pattern.
func (s *Set) Words() int { return (len(s.all) + 63) / 64 }

// MatchOne says whether pattern i matches the whole text.
func (s *Set) MatchOne(i int, text string) bool { return s.all[i].MatchString(text) }

// Match returns, bit i for pattern i, which match the whole text. The result is
// in dst where that is large enough.
func (s *Set) Match(text string, dst []uint64) []uint64 {
	if n := s.Words(); cap(dst) < n {
		dst = make([]uint64, n)
	} else {
		dst = dst[:n]
	}
	if s.nfa != nil {
		if found, ok := s.cache.match(s.nfa, text); ok {
			copy(dst, found)
			return dst
		}
	}
	clear(dst)
	for i, re := range s.all {
		if re.MatchString(text) {
			dst[i/64] |= 1 << (i % 64)
		}
	}
	return dst
}
