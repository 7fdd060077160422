package layerindex

import (
	"strings"
	"unicode/utf8"
)

// checkPath says what is wrong with a path of which the first known bytes are those of
// a path that was checked; "" when nothing is.
func checkPath(path string, known int) string {
	if len(path) > maxPath {
		return "a path is too long"
	}
	if path == "" {
		return ""
	}
	// Elements that end within the known part were looked at before.
	from := strings.LastIndexByte(path[:known], '/') + 1
	start, high := from, byte(0)
	for i := from; i < len(path); i++ {
		c := path[i]
		high |= c
		switch c {
		case '/':
			if !isElement(path[start:i]) {
				return "a path is not clean"
			}
			start = i + 1
		case 0:
			return "a path has a NUL"
		}
	}
	if !isElement(path[start:]) {
		return "a path is not clean"
	}
	if high >= utf8.RuneSelf && !isText(path[from:]) {
		return "a path is not UTF-8"
	}
	return ""
}

func isElement(e string) bool {
	switch {
	case e == "" || len(e) > maxElement:
		return false
	case e[0] == '.':
		return e != "." && e != ".."
	}
	return true
}

// isText says whether s is UTF-8 that JSON can express without loss.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError) }

// checkLink says what is wrong with a symbolic link's target.
func checkLink(target string) string {
	switch {
	case target == "" || len(target) > maxSymlink:
		return "a symbolic link's target is empty or too long"
	case strings.IndexByte(target, 0) >= 0 || !isText(target):
		return "a symbolic link's target is not UTF-8"
	}
	return ""
}
