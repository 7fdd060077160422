package dropin

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// scanned is what is above the first table of a TOML file, or of a Go template of
// one, with the place of everything: to change one array without touching a byte
// beside it, which no TOML library does.
type scanned struct {
	src        []byte
	start      int    // behind a byte order mark
	eol        string // how lines end here
	statements []statement
	nested     bool // a template's condition is open where imports is
	err        error
}

// statement is a line "key = value": src[start:next], with the value in
// src[value:end] and the line break before next.
type statement struct {
	key                     string
	start, value, end, next int
}

// array is a statement whose value is an array.
type array struct {
	statement
	open     int // of the bracket
	elements []element
}

var errSyntax = errors.New("not understood")

// scan reads src up to its first table header, or to what it cannot read.
func scan(src []byte) *scanned {
	s := &scanned{src: src, eol: "\n"}
	if bytes.HasPrefix(src, []byte(bom)) {
		s.start = len(bom)
	}
	if i := bytes.IndexByte(src, '\n'); i > 0 && src[i-1] == '\r' {
		s.eol = "\r\n"
	}
	depth := 0
	for i := s.start; ; {
		i = s.skip(i, &depth)
		if i >= len(src) || src[i] == '[' {
			return s
		}
		st, err := s.statement(i)
		if err != nil {
			s.err = err
			return s
		}
		if st.key == "imports" && depth > 0 {
			s.nested = true
		}
		s.statements = append(s.statements, st)
		i = st.next
	}
}

// find returns the statement of a key, nil where there is none.
func (s *scanned) find(key string) *statement {
	for i := range s.statements {
		if s.statements[i].key == key {
			return &s.statements[i]
		}
	}
	return nil
}

// skip returns where blanks, comments and template actions at i end, and counts
// in depth the conditions that the actions open and close.
func (s *scanned) skip(i int, depth *int) int {
	for i < len(s.src) {
		switch c := s.src[i]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case c == '#':
			i = s.line(i)
		case bytes.HasPrefix(s.src[i:], []byte("{{")):
			end := bytes.Index(s.src[i:], []byte("}}"))
			if end < 0 {
				return len(s.src)
			}
			words := strings.Fields(strings.Trim(string(s.src[i+2:i+end]), "- \t\r\n"))
			if len(words) > 0 {
				switch words[0] {
				case "if", "range", "with", "block", "define":
					*depth++
				case "end":
					*depth--
				}
			}
			i += end + 2
		default:
			return i
		}
	}
	return i
}

// line returns where the line of i ends, at its line break or the end.
func (s *scanned) line(i int) int {
	if n := bytes.IndexByte(s.src[i:], '\n'); n >= 0 {
		return i + n
	}
	return len(s.src)
}

// statement reads the statement that begins at i.
func (s *scanned) statement(i int) (statement, error) {
	st := statement{start: i}
	for i < len(s.src) && s.src[i] != '=' {
		switch s.src[i] {
		case '"', '\'':
			end, err := s.str(i)
			if err != nil {
				return st, err
			}
			i = end
		case '\n', '#', '{':
			return st, s.fail(i)
		default:
			i++
		}
	}
	if i >= len(s.src) {
		return st, s.fail(i)
	}
	st.key = key(s.src[st.start:i])
	i++
	for i < len(s.src) && (s.src[i] == ' ' || s.src[i] == '\t') {
		i++
	}
	st.value = i
	end, err := s.val(i)
	if err != nil {
		return st, err
	}
	st.end = end
	st.next = s.line(end)
	if st.next < len(s.src) {
		st.next++
	}
	return st, nil
}

// key returns the name of a key that is not dotted, "" for others.
func key(src []byte) string {
	var m map[string]any
	if toml.Unmarshal(append(bytes.Clone(src), "= 0"...), &m) != nil {
		return ""
	}
	for k, v := range m {
		if _, ok := v.(int64); ok {
			return k
		}
	}
	return ""
}

// val returns where the value that begins at i ends.
func (s *scanned) val(i int) (int, error) {
	if i >= len(s.src) {
		return i, s.fail(i)
	}
	switch s.src[i] {
	case '"', '\'':
		return s.str(i)
	case '[':
		_, end, err := s.array(i)
		return end, err
	case '{':
		return s.inline(i)
	}
	start := i
	for i < len(s.src) && !bytes.ContainsRune([]byte(",]}#\n\r"), rune(s.src[i])) {
		i++
	}
	for i > start && (s.src[i-1] == ' ' || s.src[i-1] == '\t') {
		i--
	}
	if i == start {
		return i, s.fail(i)
	}
	return i, nil
}

// str returns where the string that begins at i ends.
func (s *scanned) str(i int) (int, error) {
	q := s.src[i : i+1]
	if long := bytes.Repeat(q, 3); bytes.HasPrefix(s.src[i:], long) {
		for j := i + 3; j < len(s.src); j++ {
			if s.src[j] == '\\' && q[0] == '"' {
				j++
				continue
			}
			if bytes.HasPrefix(s.src[j:], long) {
				j += 3
				for n := 0; n < 2 && j < len(s.src) && s.src[j] == q[0]; n++ {
					j++ // up to two quotes may end the text
				}
				return j, nil
			}
		}
		return i, s.fail(i)
	}
	for j := i + 1; j < len(s.src) && s.src[j] != '\n'; j++ {
		if s.src[j] == '\\' && q[0] == '"' {
			j++
			continue
		}
		if s.src[j] == q[0] {
			return j + 1, nil
		}
	}
	return i, s.fail(i)
}

// array returns the elements of the array that begins at i, and where it ends.
func (s *scanned) array(i int) ([]element, int, error) {
	var all []element
	for i++; ; {
		i = s.space(i)
		switch {
		case i >= len(s.src):
			return nil, i, s.fail(i)
		case s.src[i] == ']':
			return all, i + 1, nil
		case s.src[i] == ',' && len(all) > 0 && all[len(all)-1].comma < 0:
			all[len(all)-1].comma = i
			i++
			continue
		case len(all) > 0 && all[len(all)-1].comma < 0:
			return nil, i, s.fail(i)
		}
		end, err := s.val(i)
		if err != nil {
			return nil, i, err
		}
		all = append(all, element{start: i, end: end, comma: -1, text: string(s.src[i:end])})
		i = end
	}
}

// inline returns where the inline table that begins at i ends.
func (s *scanned) inline(i int) (int, error) {
	for i++; i < len(s.src); {
		switch s.src[i] {
		case '}':
			return i + 1, nil
		case '"', '\'':
			end, err := s.str(i)
			if err != nil {
				return i, err
			}
			i = end
		case '[', '{':
			end, err := s.val(i)
			if err != nil {
				return i, err
			}
			i = end
		default:
			i++
		}
	}
	return i, s.fail(i)
}

// space returns where blanks and comments at i end.
func (s *scanned) space(i int) int {
	for i < len(s.src) {
		switch s.src[i] {
		case ' ', '\t', '\n', '\r':
			i++
		case '#':
			i = s.line(i)
		default:
			return i
		}
	}
	return i
}

// imports returns the array of imports, nil where there is none.
func (s *scanned) imports() (*array, error) {
	st := s.find("imports")
	if st == nil {
		return nil, s.err
	}
	if s.src[st.value] != '[' {
		return nil, fmt.Errorf("imports is no array: correct it first")
	}
	elements, _, err := s.array(st.value)
	if err != nil {
		return nil, err
	}
	return &array{statement: *st, open: st.value, elements: elements}, nil
}

// fail is the error of what stands at i.
func (s *scanned) fail(i int) error {
	line := 1 + bytes.Count(s.src[:min(i, len(s.src))], []byte("\n"))
	return fmt.Errorf("line %d: %w", line, errSyntax)
}
