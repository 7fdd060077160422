package dropin

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
)

// marker is the comment behind an imports line that we wrote.
const marker = " # apparate"

// newline ends our line in a template: text that begins with "{{-" behind it
// would else take the line break away.
const newline = `{{ "\n" }}`

// addImport returns src, and with it glob at the end of its imports, where it is
// not there yet. Everything else stays to the byte.
func addImport(src []byte, glob string, template bool) ([]byte, error) {
	s := scan(src)
	list, err := s.imports()
	if err != nil {
		return nil, err
	}
	if list == nil {
		at := s.start
		if v := s.find("version"); v != nil && !template && v.next < len(src) {
			at = v.next
		}
		line := "imports = [" + quote(glob) + "]" + marker
		if template {
			line += newline
		}
		return splice(src, at, at, line+s.eol), nil
	}
	if s.nested {
		return nil, fmt.Errorf("imports depends on a condition of the template: add %s to it by hand", quote(glob))
	}
	for _, e := range list.elements {
		if e.is(glob) {
			return src, nil
		}
	}
	if n := len(list.elements); n > 0 {
		end := list.elements[n-1].end
		return splice(src, end, end, ", "+quote(glob)), nil
	}
	return splice(src, list.open+1, list.open+1, quote(glob)), nil
}

// dropImport returns src without glob in its imports: the inverse of addImport,
// also when more was changed in between. ok says whether there was one.
func dropImport(src []byte, glob string) (out []byte, ok bool, err error) {
	s := scan(src)
	list, err := s.imports()
	if err != nil || list == nil {
		return src, false, err
	}
	for i, e := range list.elements {
		if !e.is(glob) {
			continue
		}
		ours := bytes.HasPrefix(src[list.end:], []byte(marker))
		if ours && len(list.elements) == 1 {
			return splice(src, list.start, list.next, ""), true, nil
		}
		if ours {
			end := list.end + len(marker)
			if bytes.HasPrefix(src[end:], []byte(newline)) {
				end += len(newline)
			}
			src = splice(src, list.end, end, "")
		}
		return list.without(src, i), true, nil
	}
	return src, false, nil
}

// without returns src without element i of the array.
func (l *array) without(src []byte, i int) []byte {
	e := l.elements[i]
	if i > 0 && string(src[l.elements[i-1].end:e.start]) == ", " {
		return splice(src, l.elements[i-1].end, e.end, "") // as it was put there
	}
	comma := e.comma
	if comma < 0 && i > 0 {
		comma = l.elements[i-1].comma
	}
	if comma < 0 {
		return splice(src, e.start, e.end, "")
	}
	if comma > e.end {
		src = splice(src, comma, comma+1, "")
		return splice(src, e.start, e.end, "")
	}
	if comma < e.start {
		src = splice(src, e.start, e.end, "")
		return splice(src, comma, comma+1, "")
	}
	to := comma + 1 // right behind the element: the blanks that follow go too
	for to < len(src) && (src[to] == ' ' || src[to] == '\t') {
		to++
	}
	return splice(src, e.start, to, "")
}

// splice returns a copy of src with text in place of what is between from and to.
func splice(src []byte, from, to int, text string) []byte {
	out := make([]byte, 0, len(src)+len(text))
	out = append(out, src[:from]...)
	out = append(out, text...)
	return append(out, src[to:]...)
}

// quote writes a path that Input.check has let pass as a TOML string.
func quote(path string) string { return `"` + path + `"` }

// element is a value in an array: src[start:end], and the comma behind it or -1.
type element struct {
	start, end, comma int
	text              string
}

// is says whether the element is the path glob.
func (e element) is(glob string) bool {
	var v struct{ K any }
	if toml.Unmarshal([]byte("k = "+e.text), &v) != nil {
		return false
	}
	s, ok := v.K.(string)
	return ok && filepath.Clean(s) == filepath.Clean(glob)
}
