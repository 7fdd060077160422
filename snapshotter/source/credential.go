package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
)

// Credential is a user name and a password for a registry. An empty User with a
// Secret is an identity token; the zero value is nobody. It never prints its secret.
type Credential struct {
	User, Secret string
}

// String hides the secret.
func (c Credential) String() string {
	switch {
	case c == Credential{}:
		return "anonymous"
	case c.User == "":
		return "identity token"
	}
	return c.User + ":***"
}

// GoString hides the secret from %#v.
func (c Credential) GoString() string { return fmt.Sprintf("Credential(%s)", c) }

// LogValue hides the secret from loggers.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// fingerprint tells credentials apart without keeping them.
type fingerprint [sha256.Size]byte

func (c Credential) fingerprint() fingerprint {
	return sha256.Sum256([]byte(c.User + "\x00" + c.Secret))
}

// maxCandidates is how many credentials are tried for one repository, so that a
// node with hundreds of pull secrets does not look like an attack.
const maxCandidates = 16

// maxOfPlace is how many of one place are tried: those of pods, which anybody may
// bring, must not keep the others from being tried.
const maxOfPlace = 12

// candidate is a place that may know credentials for a repository.
type candidate struct {
	// origin names the place in errors: a file, a plugin.
	origin string
	// get returns the credentials, best first. It may take long: a plugin runs.
	get func(context.Context) ([]Credential, error)
	// refused, if set, is told of a credential that the registry did not take.
	refused func(Credential)
}

// known is a candidate whose answer is there already.
func known(origin string, creds []Credential, err error) candidate {
	return candidate{origin: origin, get: func(context.Context) ([]Credential, error) { return creds, err }}
}

// keychain asks all places for credentials, in this order: the program around us,
// the directory of credential files, kubelet's plugins, docker's config.
type keychain struct {
	ask     func(ctx context.Context, host, repo string) ([]Credential, error)
	dir     *credentialsDir
	plugins *plugins
	docker  string
}

// candidates are the places that may know credentials for the repository repo
// ("team/app") on host. Those that surely know none are left out.
func (k *keychain) candidates(host, repo string) []candidate {
	var list []candidate
	if k.ask != nil {
		list = append(list, candidate{origin: "the program", get: func(ctx context.Context) ([]Credential, error) { return k.ask(ctx, host, repo) }})
	}
	name := imageName{host: canonicalHost(host), repo: repo}
	list = append(list, k.dir.candidates(name)...)
	list = append(list, k.plugins.candidates(name)...)
	if c, ok := dockerCandidate(k.docker, host); ok {
		list = append(list, c)
	}
	return list
}

// choice is one credential to try.
type choice struct {
	Credential
	origin  string
	refused func(Credential)
	trusted bool // because it worked before
}

// choices hands out the credentials of candidates one after the other, each once,
// and asks a place only when those before it were not enough. What worked before
// comes first.
type choices struct {
	list   []candidate
	worked success
	queue  []choice
	seen   map[fingerprint]bool
	given  int     // how many were put into the queue
	failed []error // of places that could not answer
}

func newChoices(list []candidate, worked success) *choices {
	c := &choices{list: slices.Clone(list), worked: worked, seen: map[fingerprint]bool{}}
	slices.SortStableFunc(c.list, func(a, b candidate) int {
		return cmp.Compare(later(a.origin != worked.origin), later(b.origin != worked.origin))
	})
	return c
}

// later makes true sort after false.
func later(b bool) int {
	if b {
		return 1
	}
	return 0
}

// next returns the next credential, false if there is no other.
func (c *choices) next(ctx context.Context) (choice, bool) {
	for len(c.queue) == 0 {
		if len(c.list) == 0 || c.given >= maxCandidates {
			return choice{}, false
		}
		from := c.list[0]
		c.list = c.list[1:]
		creds, err := from.get(ctx)
		if err != nil {
			c.failed = append(c.failed, err)
		}
		for _, cred := range creds {
			if f := cred.fingerprint(); cred.Secret != "" && !c.seen[f] {
				c.seen[f] = true
				c.queue = append(c.queue, choice{cred, from.origin, from.refused, f == c.worked.id})
			}
		}
		slices.SortStableFunc(c.queue, func(a, b choice) int { return cmp.Compare(later(!a.trusted), later(!b.trusted)) })
		c.queue = c.queue[:min(len(c.queue), maxOfPlace, maxCandidates-c.given)]
		c.given += len(c.queue)
		if len(c.queue) == 1 && from.origin == c.worked.origin {
			c.queue[0].trusted = true // the successor of the one that worked
		}
	}
	first := c.queue[0]
	c.queue = c.queue[1:]
	return first, true
}

// more says whether next may return another one.
func (c *choices) more() bool { return len(c.queue) > 0 || len(c.list) > 0 }
