package dialect

import (
	"regexp"
	"strconv"
)

// The names that registries allow (OCI distribution spec 1.1, "Pulling
// manifests"; OCI image spec 1.1, "Digests").
var (
	repositoryGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestGrammar     = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
)

func validRepository(s string) bool { return len(s) <= 255 && repositoryGrammar.MatchString(s) }
func validTag(s string) bool        { return tagGrammar.MatchString(s) }
func validDigest(s string) bool     { return digestGrammar.MatchString(s) }

// quoted shows a value that is wrong, and not too much of it.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}
