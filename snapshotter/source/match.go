package source

import (
	"cmp"
	"errors"
	"path"
	"slices"
	"strings"
)

// imageName is a repository for which credentials are looked up.
type imageName struct {
	host string // "registry.example.com:5000"; "docker.io" for Docker Hub
	repo string // "team/app"
}

func (n imageName) String() string { return n.host + "/" + n.repo }

// canonicalHost returns the one name under which a registry's credentials are
// looked up: Docker Hub has several.
func canonicalHost(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// pattern is a key of auths in a credentials file, or an item of a plugin's
// matchImages: a host whose labels may have wildcards, and a path below which it
// holds. Kubernetes, "Images", section "Interpretation of config.json".
type pattern struct {
	labels []string // of the host, with wildcards as path.Match has them
	port   string   // "" for none: ports must be equal
	path   string   // "team/app", no slashes at its ends; "" for all
}

// parsePattern reads "registry.example.com", "*.example.com:5000/team" and the
// forms of docker's config, "https://index.docker.io/v1/".
func parsePattern(s string) (pattern, error) {
	_, rest, ok := strings.Cut(s, "://")
	if !ok {
		rest = s
	}
	host, repo, _ := strings.Cut(rest, "/")
	if first, below, _ := strings.Cut(repo, "/"); first == "v1" || first == "v2" {
		repo = below // of the registry's address, not of a repository
	}
	host = canonicalHost(host)
	if host == "" || strings.ContainsAny(host, " @?#\\") {
		return pattern{}, errors.New("it begins with no host such as registry.example.com")
	}
	p := pattern{path: strings.Trim(repo, "/")}
	p.labels, p.port = splitHost(host)
	for _, l := range p.labels {
		if l == "" || strings.Contains(l, ":") && !strings.HasPrefix(l, "[") {
			return pattern{}, errors.New("it begins with no host such as registry.example.com")
		}
		if _, err := path.Match(l, ""); err != nil && !strings.Contains(l, ":") {
			return pattern{}, errors.New("its wildcards cannot be read")
		}
	}
	return p, nil
}

// String is the one key for the pattern, however it was written.
func (p pattern) String() string {
	host := strings.Join(p.labels, ".")
	if p.port != "" {
		host += ":" + p.port
	}
	return Key(host, p.path)
}

// splitHost returns the labels of a host and its port. An IPv6 address is one label.
func splitHost(host string) (labels []string, port string) {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host, port = host[:i], host[i+1:]
	}
	if strings.HasPrefix(host, "[") {
		return []string{host}, port
	}
	return strings.Split(host, "."), port
}

// hostMatches says whether the pattern is for the registry of n.
func (p pattern) hostMatches(n imageName) bool {
	labels, port := splitHost(n.host)
	if port != p.port || len(labels) != len(p.labels) {
		return false
	}
	for i, l := range p.labels {
		if l == labels[i] {
			continue
		}
		if ok, err := path.Match(l, labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// below says whether n is the pattern's repository or one below it.
func (p pattern) below(n imageName) bool {
	return p.hostMatches(n) && (p.path == "" || n.repo == p.path || strings.HasPrefix(n.repo, p.path+"/"))
}

// begins says whether the name of n begins with the pattern's path, which may end
// within a word: so kubelet has it for plugins.
func (p pattern) begins(n imageName) bool {
	return p.hostMatches(n) && strings.HasPrefix(n.repo, p.path)
}

// entry is the credential for what a pattern matches.
type entry struct {
	pattern
	Credential
}

// sortEntries puts the more specific patterns first: the longer path, then the
// host with fewer wildcards. Those for the same keep their order.
func sortEntries(list []entry) {
	wild := func(e entry) int {
		n := 0
		for _, l := range e.labels {
			n += strings.Count(l, "*") + strings.Count(l, "?")
		}
		return n
	}
	slices.SortStableFunc(list, func(a, b entry) int {
		return cmp.Or(
			cmp.Compare(len(b.path), len(a.path)), cmp.Compare(wild(a), wild(b)),
			slices.Compare(a.labels, b.labels), cmp.Compare(a.port, b.port), cmp.Compare(a.path, b.path),
		)
	})
}
