package dropin

import (
	"bytes"
	"fmt"
	"strings"
)

// Restore returns current, the main file (or template) as it is now, without the
// import of glob. original and applied are what it was before and what we wrote:
// Input.Main and Plan.Main, or Template.Before and Template.After. Where nobody
// edited it since, the answer is original to the byte; else it is current without
// our part. nil means that the file is to be removed.
func Restore(current, original, applied []byte, glob string) ([]byte, error) {
	if current == nil || current != nil && original != nil && bytes.Equal(current, original) {
		return current, nil
	}
	if bytes.Equal(current, applied) {
		return original, nil
	}
	out, err := Strip(current, glob)
	if err != nil {
		return nil, err
	}
	if original == nil && empty(out) {
		return nil, nil
	}
	return out, nil
}

// Strip returns src, a main file or a template, without the import of glob, if it
// is there.
func Strip(src []byte, glob string) ([]byte, error) {
	out, ok, err := dropImport(src, glob)
	if err != nil {
		return nil, fmt.Errorf("%w: take %s out of imports by hand", err, quote(glob))
	}
	if !ok && bytes.Contains(src, []byte(glob)) && scan(src).err != nil {
		return nil, fmt.Errorf("%w: take %s out of imports by hand", scan(src).err, quote(glob))
	}
	return bytes.TrimPrefix(out, []byte(created)), nil
}

// empty says whether a file that we created says nothing beside its version.
func empty(src []byte) bool {
	for line := range strings.Lines(string(src)) {
		line = strings.TrimSpace(line)
		switch line {
		case "", "version = 2", "version = 3", base, "imports = []":
		default:
			return false
		}
	}
	return true
}
