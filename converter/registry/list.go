package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/apparate/apparate/converter/fault"
)

// Bounds of lists, against registries that never end.
const (
	pageSize    = 1000
	maxPageSize = 8 << 20 // bytes
	maxPages    = 100_000
)

// TagPage is one page of a repository's tags.
type TagPage struct {
	Tags []string
	// Digests has the digest of each tag where the list itself tells: registries
	// of Google put a "manifest" object into it, from digests to their tags. It
	// is nil elsewhere.
	Digests map[string]string
}

// tagList is the answer to "GET /v2/<name>/tags/list" (OCI distribution spec
// 1.1, "Listing Tags"), and Google's addition to it.
type tagList struct {
	Tags     []string `json:"tags"`
	Manifest map[string]struct {
		Tag []string `json:"tag"`
	} `json:"manifest"`
}

// Repositories lists the registry's catalog ("GET /v2/_catalog", distribution's
// API), calling yield with each page until it returns an error. A registry that
// has no catalog is a fault of kind NoCatalog, one that shows it to others only
// of kind PullDenied.
func (s *Session) Repositories(ctx context.Context, yield func(names []string) error) error {
	q := question{scope: "registry:catalog:*", path: "/v2/_catalog", what: s.host()}
	_, _, err := s.pages(ctx, q, s.noCatalog, func(raw []byte) error {
		var list struct {
			Repositories []string `json:"repositories"`
		}
		if err := s.decode(raw, &list, "its catalog"); err != nil {
			return err
		}
		return yield(list.Repositories)
	})
	return err
}

// noCatalog says what to do without a catalog.
func (s *Session) noCatalog(err error) error {
	const advice = "name the repositories to scan in spec.scan.repositories"
	var e *fault.Error
	switch {
	case !errors.As(err, &e):
	case e.Kind == fault.PullDenied:
		return fault.New(fault.PullDenied, e.Err, "no right to list the catalog of %s: %s, or use an account that may", s.host(), advice)
	case e.Kind == fault.NotFound || hasStatus(e, http.StatusMethodNotAllowed):
		return fault.New(fault.NoCatalog, e.Err, "registry %s has no catalog: %s", s.host(), advice)
	}
	return err
}

// Tags lists a repository's tags page by page (OCI distribution spec 1.1,
// "Listing Tags"), calling yield with each until it returns an error. known is
// the validator of the last listing, "" for none: when the list is still the
// same, unchanged is true and yield is not called. The validator is "" where the
// registry gives none, or has several pages, of which one says nothing of the
// others. A repository that does not exist is a fault of kind NotFound.
func (s *Session) Tags(ctx context.Context, repo, known string, yield func(TagPage) error) (validator string, unchanged bool, err error) {
	if err := s.checkRepo(repo); err != nil {
		return "", false, err
	}
	q := question{scope: pullScope(repo), path: "/v2/" + repo + "/tags/list", what: s.host() + "/" + repo}
	if known != "" {
		q.header = http.Header{"If-None-Match": {known}}
	}
	same := func(err error) error { return err }
	return s.pages(ctx, q, same, func(raw []byte) error {
		page, err := s.tagPage(raw)
		if err != nil {
			return err
		}
		return yield(page)
	})
}

func (s *Session) tagPage(raw []byte) (TagPage, error) {
	var list tagList
	if err := s.decode(raw, &list, "a list of tags"); err != nil {
		return TagPage{}, err
	}
	page := TagPage{Tags: list.Tags}
	for digest, m := range list.Manifest {
		for _, tag := range m.Tag {
			if page.Digests == nil {
				page.Digests = map[string]string{}
			}
			page.Digests[tag] = digest
		}
	}
	return page, nil
}

func (s *Session) decode(raw []byte, into any, what string) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fault.New(fault.NotRegistry, err, "registry %s gave %s that cannot be read: check the host and port", s.host(), what)
	}
	return nil
}

// pages asks for a list and for what follows it. judge has the last word on
// errors of the requests; those of yield come back as they are.
func (s *Session) pages(ctx context.Context, q question, judge func(error) error, yield func([]byte) error) (validator string, unchanged bool, err error) {
	list := q.path
	q.path += "?n=" + strconv.Itoa(pageSize)
	// Digests, since the registry decides how long the addresses are.
	seen := map[[sha256.Size]byte]bool{}
	for page := 0; q.path != ""; page++ {
		at := sha256.Sum256([]byte(q.path))
		if page >= maxPages || seen[at] {
			return "", false, fault.New(fault.RegistryError, nil, "registry %s gives lists that do not end (%s)", s.host(), list)
		}
		seen[at] = true
		resp, err := s.get(ctx, q)
		if err != nil {
			return "", false, judge(err)
		}
		if resp.StatusCode == http.StatusNotModified {
			discard(resp)
			return q.header.Get("If-None-Match"), true, nil
		}
		q.header = nil // what follows is not asked for conditionally
		raw, err := readBounded(ctx, resp, maxPageSize, fault.RegistryError, "a list of registry "+s.host())
		if err != nil {
			return "", false, err
		}
		if err := yield(raw); err != nil {
			return "", false, err
		}
		if q.path, err = s.following(q.path, resp.Header.Values("Link")); err != nil {
			return "", false, err
		}
		if page == 0 && q.path == "" {
			validator = resp.Header.Get("ETag")
		}
	}
	return validator, false, nil
}

// following reads the address of the next page (RFC 8288, with the relation
// "next"), as a path; "" for none. It has to be on the same host.
func (s *Session) following(at string, links []string) (string, error) {
	target, ok := nextLink(links)
	if !ok {
		return "", nil
	}
	base := url.URL{Scheme: s.registry.Scheme(), Host: s.host()}
	here, err := base.Parse(at)
	if err != nil {
		return "", fault.New(fault.Internal, err, "reading %q", at)
	}
	next, err := here.Parse(target)
	if err != nil || bareHost(next) != bareHost(&base) || !strings.HasPrefix(next.Path, "/v2/") {
		return "", fault.New(fault.RegistryError, nil, "registry %s continues a list at %.200q, which is not in it", s.host(), target)
	}
	return next.RequestURI(), nil
}

// bareHost leaves out what does not matter: registries behind a proxy may name
// themselves with another scheme, and with the port of a scheme.
func bareHost(u *url.URL) string {
	port := ":443"
	if u.Scheme == "http" {
		port = ":80"
	}
	return strings.TrimSuffix(strings.ToLower(u.Host), port)
}

// nextLink finds the target with the relation "next" among Link headers.
func nextLink(links []string) (string, bool) {
	for _, l := range links {
		for {
			_, rest, begins := strings.Cut(l, "<")
			target, rest, ends := strings.Cut(rest, ">")
			if !begins || !ends {
				break
			}
			var params []string
			if params, l = linkParams(rest); slices.ContainsFunc(params, isNext) {
				return strings.TrimSpace(target), true
			}
		}
	}
	return "", false
}

// linkParams splits the parameters of one link, and gives what comes after it.
// Quoted values may have commas and semicolons in them; a list would end too
// early, and without an error, if those were taken for separators.
func linkParams(s string) (params []string, rest string) {
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ';':
			params, start = append(params, s[start:i]), i+1
		case c == ',':
			return append(params, s[start:i]), s[i+1:]
		}
	}
	return append(params, s[start:]), ""
}

// isNext says whether a parameter is the relation "next", alone or among others.
func isNext(param string) bool {
	k, v, _ := strings.Cut(param, "=")
	if !strings.EqualFold(strings.TrimSpace(k), "rel") {
		return false
	}
	relations := strings.Fields(strings.Trim(strings.TrimSpace(v), `"`))
	return slices.ContainsFunc(relations, func(r string) bool { return strings.EqualFold(r, "next") })
}
