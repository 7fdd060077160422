package toc

import (
	"bytes"
	"unicode/utf8"
)

// cleanPath appends the clean form of name to dst: relative, without empty, "."
// and ".." elements; nothing for the root. Where name is refused, it returns what
// is wrong with it and the kind of error.
//
// As in unpacking a tar, ".." is resolved in the text alone. A name that would
// leave the root is refused, where an unpacker would stop at the root.
func cleanPath(dst, name []byte) (clean []byte, what string, kind error) {
	switch {
	case len(name) == 0:
		return nil, "the name is empty", ErrHostile
	case len(name) > maxPath:
		return nil, "the path is too long", ErrLimit
	case bytes.IndexByte(name, 0) >= 0:
		return nil, "the name has a NUL", ErrHostile
	case !faithful(name):
		return nil, notFaithful, ErrUnsupported
	}
	base := len(dst)
	for len(name) > 0 {
		var element []byte
		if i := bytes.IndexByte(name, '/'); i >= 0 {
			element, name = name[:i], name[i+1:]
		} else {
			element, name = name, nil
		}
		switch {
		case len(element) == 0 || string(element) == ".":
		case string(element) == "..":
			if len(dst) == base {
				return nil, "the path leaves the root", ErrHostile
			}
			dst = dst[:max(base, base+bytes.LastIndexByte(dst[base:], '/'))]
		case len(element) > maxName:
			return nil, "an element of the path is too long", ErrLimit
		default:
			if len(dst) > base {
				dst = append(dst, '/')
			}
			dst = append(dst, element...)
		}
	}
	return dst, "", nil
}

// notFaithful says why names that are not faithful are refused.
const notFaithful = "a name is not UTF-8, which JSON cannot express"

// faithful says whether name is what the file is really called. JSON has no
// way to write bytes that are not UTF-8: writers put U+FFFD in their place, and
// we would show the file under a wrong name.
func faithful(name []byte) bool {
	return isASCII(name) || utf8.Valid(name) && !bytes.ContainsRune(name, utf8.RuneError)
}

// isASCII says whether p is ASCII only.
func isASCII(p []byte) bool {
	for _, c := range p {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
