package toc

import (
	"bytes"
	"encoding/binary"
	"math"
	"unicode/utf16"
	"unicode/utf8"
)

// null takes a null if one is next.
func (s *scanner) null() (bool, error) {
	if s.peek() != 'n' {
		return false, nil
	}
	return true, s.literal("null")
}

// literal takes the given word.
func (s *scanner) literal(word string) error {
	for s.end-s.pos < len(word) {
		if !s.more(s.pos) {
			return s.fail("unknown word")
		}
	}
	if string(s.buf[s.pos:s.pos+len(word)]) != word {
		return s.fail("unknown word")
	}
	s.pos += len(word)
	return nil
}

// number takes a number and returns its text.
func (s *scanner) number() ([]byte, error) {
	s.peek()
	i := s.pos
	for {
		for i < s.end && isNumberByte(s.buf[i]) {
			i++
		}
		if i < s.end {
			break
		}
		i -= s.pos
		if i > maxNumber {
			return nil, s.fail("number too long")
		}
		ok := s.more(s.pos)
		i += s.pos
		if !ok {
			break
		}
	}
	text := s.buf[s.pos:i]
	if len(text) > maxNumber || !validNumber(text) {
		return nil, s.fail("expected a number")
	}
	s.pos = i
	return text, nil
}

// maxNumber is the longest number we read, in bytes; a TOC has only integers.
const maxNumber = 1 << 10

// isNumberByte says whether c can be part of a number.
func isNumberByte(c byte) bool {
	return c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

// validNumber says whether text is a number of RFC 8259, section 6.
func validNumber(text []byte) bool {
	i := 0
	digits := func() bool {
		from := i
		for i < len(text) && text[i] >= '0' && text[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(text) && text[i] == '-' {
		i++
	}
	zero := i < len(text) && text[i] == '0'
	from := i
	if !digits() || zero && i > from+1 {
		return false
	}
	if i < len(text) && text[i] == '.' {
		i++
		if !digits() {
			return false
		}
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		i++
		if i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		if !digits() {
			return false
		}
	}
	return i == len(text)
}

// integer takes an integer, or null for 0.
func (s *scanner) integer() (int64, error) {
	if isNull, err := s.null(); isNull || err != nil {
		return 0, err
	}
	text, err := s.number()
	if err != nil {
		return 0, err
	}
	digits, negative := bytes.CutPrefix(text, []byte("-"))
	var n uint64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, s.fail("expected an integer")
		}
		d := uint64(c - '0')
		if n > (math.MaxInt64+1-d)/10 {
			return 0, s.fail("the integer is too large")
		}
		n = n*10 + d
	}
	switch {
	case negative:
		return -int64(n), nil // exact for 1<<63 too
	case n > math.MaxInt64:
		return 0, s.fail("the integer is too large")
	}
	return int64(n), nil
}

// text takes a string, or null for an empty one.
func (s *scanner) text() ([]byte, error) {
	if isNull, err := s.null(); isNull || err != nil {
		return nil, err
	}
	return s.str()
}

// str takes a string and returns its bytes with the escapes resolved. Bytes
// that are no UTF-8 are passed on as they are.
func (s *scanner) str() ([]byte, error) {
	if err := s.expect('"', "a string"); err != nil {
		return nil, err
	}
	escaped := false
	for i := s.pos; ; i++ {
		if i += plainPrefix(s.buf[i:s.end]); i == s.end {
			var err error
			if i, err = s.longer(i); err != nil {
				return nil, err
			}
		}
		switch c := s.buf[i]; {
		case c == '"':
			raw := s.buf[s.pos:i]
			s.pos = i + 1
			if escaped {
				return s.unescape(raw)
			}
			return raw, nil
		case c == '\\':
			escaped = true
			// The next byte belongs to the escape even if it is a quote.
			if i++; i == s.end {
				var err error
				if i, err = s.longer(i); err != nil {
					return nil, err
				}
			}
		case c < ' ':
			return nil, s.fail("control character in a string")
		}
	}
}

// longer reads more of a string that reaches to i, the end of the window, and
// returns where i is now.
func (s *scanner) longer(i int) (int, error) {
	n := i - s.pos
	if n > maxString {
		return 0, failf(ErrLimit, "the JSON has a string longer than %d bytes", maxString)
	}
	if !s.more(s.pos) {
		return 0, s.fail("the string does not end")
	}
	return s.pos + n, nil
}

// plainPrefix returns how many bytes at the start of p stand for themselves in
// a string: all but quotes, backslashes and control characters. Most of a TOC
// is strings, so it looks at eight bytes at a time.
func plainPrefix(p []byte) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	i := 0
	for ; i+8 <= len(p); i += 8 {
		x := binary.LittleEndian.Uint64(p[i:])
		// In each byte of x-ones*c, the high bit tells x<c, where x has none.
		quote, backslash := x^('"'*ones), x^('\\'*ones)
		if ((x-' '*ones)&^x|(quote-ones)&^quote|(backslash-ones)&^backslash)&highs != 0 {
			break
		}
	}
	for i < len(p) && p[i] >= ' ' && p[i] != '"' && p[i] != '\\' {
		i++
	}
	return i
}

// unescape resolves the escapes of raw, as encoding/json does: a surrogate
// without its other half becomes U+FFFD.
func (s *scanner) unescape(raw []byte) ([]byte, error) {
	out := s.scratch[:0]
	for len(raw) > 0 {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			out = append(out, raw...)
			break
		}
		out = append(out, raw[:i]...)
		raw = raw[i:]
		if c := simpleEscape(raw[1]); c != 0 {
			out, raw = append(out, c), raw[2:]
			continue
		}
		r, ok := unicodeEscape(raw)
		if !ok {
			return nil, s.fail("unknown escape in a string")
		}
		raw = raw[6:]
		if utf16.IsSurrogate(r) {
			// U+FFFD also where raw does not begin with an escape.
			low, _ := unicodeEscape(raw)
			if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
				raw = raw[6:]
			}
		}
		out = utf8.AppendRune(out, r)
	}
	s.scratch = out
	return out, nil
}

// simpleEscape returns the character that \c stands for, 0 for none.
func simpleEscape(c byte) byte {
	switch c {
	case '"', '\\', '/':
		return c
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return 0
}

// unicodeEscape returns the code unit of the \uXXXX that p begins with.
func unicodeEscape(p []byte) (rune, bool) {
	if len(p) < 6 || p[0] != '\\' || p[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range p[2:6] {
		d, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

// skip takes any value and forgets it.
func (s *scanner) skip() error {
	switch c := s.peek(); c {
	case '{':
		return s.object(func([]byte) error { return s.skip() })
	case '[':
		return s.array(s.skip)
	case '"':
		_, err := s.str()
		return err
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	default:
		_, err := s.number()
		return err
	}
}
