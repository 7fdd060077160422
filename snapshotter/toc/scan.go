package toc

import (
	"bytes"
	"errors"
	"io"
)

// scanner reads JSON (RFC 8259) in one pass from a stream. It knows no tree of
// values: its caller asks for what it expects next. That, a window instead of
// the whole text, and no reflection make it several times faster than
// encoding/json, whose parsing of the TOCs used to be the largest part of the
// time in which an image got ready.
//
// Byte slices that it returns point into the window and are valid until the
// next call.
type scanner struct {
	r   io.Reader
	buf []byte // the window
	pos int    // the next byte is buf[pos]
	end int    // buf[:end] is filled
	// before counts the bytes of the stream before buf[0], for messages.
	before  int64
	readErr error
	scratch []byte // a string without its escapes
	depth   int
}

// windowSize is how much is read at a time, in bytes.
const windowSize = 64 << 10

// newScanner returns a scanner of r.
func newScanner(r io.Reader) *scanner {
	return &scanner{r: r, buf: make([]byte, windowSize)}
}

// fail says what is wrong at the current position.
func (s *scanner) fail(what string) error {
	if s.readErr != nil && !errors.Is(s.readErr, io.EOF) {
		return failf(ErrCorrupt, "read JSON after %d bytes: %v", s.before+int64(s.end), s.readErr)
	}
	return failf(ErrCorrupt, "JSON, byte %d: %s", s.before+int64(s.pos), what)
}

// more reads more of the stream and keeps the window's bytes from keep on,
// which move to its start. It is false at the end of the stream.
func (s *scanner) more(keep int) bool {
	if s.readErr != nil {
		return false
	}
	if keep == 0 && s.end == len(s.buf) {
		s.buf = append(s.buf, make([]byte, len(s.buf))...)
	}
	copy(s.buf, s.buf[keep:s.end])
	s.before += int64(keep)
	s.pos -= keep
	s.end -= keep
	const patience = 100 // reads of nothing, as in bufio
	for range patience {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		s.readErr = err
		if n > 0 {
			return true
		}
		if err != nil {
			return false
		}
	}
	s.readErr = io.ErrNoProgress
	return false
}

// peek skips white space and returns the next byte without taking it; 0 at the
// end of the stream (a NUL is not JSON either).
func (s *scanner) peek() byte {
	for {
		for i, c := range s.buf[s.pos:s.end] {
			if c != ' ' && c != '\t' && c != '\n' && c != '\r' {
				s.pos += i
				return c
			}
		}
		if s.pos = s.end; !s.more(s.pos) {
			return 0
		}
	}
}

// expect takes c, after white space.
func (s *scanner) expect(c byte, what string) error {
	if s.peek() != c {
		return s.fail("expected " + what)
	}
	s.pos++
	return nil
}

// object calls field for each key of an object; field must take the value.
// key is valid until field takes it.
func (s *scanner) object(field func(key []byte) error) error {
	if err := s.enter('{', "an object"); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := s.separator('}', first)
		if err != nil || !more {
			return err
		}
		key, err := s.str()
		if err != nil {
			return err
		}
		// To look for the colon may move the window away under the key.
		if s.pos == s.end || s.buf[s.pos] != ':' {
			key = bytes.Clone(key)
		}
		if err := s.expect(':', "a colon"); err != nil {
			return err
		}
		if err := field(key); err != nil {
			return err
		}
	}
}

// array calls element for each element of an array; element must take it.
func (s *scanner) array(element func() error) error {
	if err := s.enter('[', "an array"); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := s.separator(']', first)
		if err != nil || !more {
			return err
		}
		if err := element(); err != nil {
			return err
		}
	}
}

// enter takes the opening bracket of an object or array.
func (s *scanner) enter(open byte, what string) error {
	if err := s.expect(open, what); err != nil {
		return err
	}
	if s.depth++; s.depth > maxDepth {
		return failf(ErrLimit, "the JSON is nested deeper than %d", maxDepth)
	}
	return nil
}

// separator takes what stands between two elements and says whether another
// one follows; otherwise it took the closing bracket.
func (s *scanner) separator(closing byte, first bool) (bool, error) {
	c := s.peek()
	switch {
	case c == closing:
		s.pos++
		s.depth--
		return false, nil
	case first:
		return true, nil
	case c == ',':
		s.pos++
		return true, nil
	}
	return false, s.fail("expected a comma or a closing bracket")
}
