package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
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
// has no catalog is a fault of kind NoCatalog.
func (s *Session) Repositories(ctx context.Context, yield func(names []string) error) error {
	_, _, err := s.pages(ctx, "registry:catalog:*", "/v2/_catalog", "", func(raw []byte) error {
		var list struct {
			Repositories []string `json:"repositories"`
		}
		if err := s.decode(raw, &list, "its catalog"); err != nil {
			return err
		}
		return yield(list.Repositories)
	})
	const advice = "name the repositories to scan in spec.scan.repositories"
	var e *fault.Error
	switch errors.As(err, &e); {
	case fault.KindOf(err) == fault.PullDenied:
		return fault.New(fault.PullDenied, e.Err, "no right to list the catalog of %s: %s, or use an account that may", s.registry, advice)
	case fault.KindOf(err) == fault.NotFound || e != nil && hasStatus(e, http.StatusMethodNotAllowed):
		return fault.New(fault.NoCatalog, e.Err, "registry %s has no catalog: %s", s.registry, advice)
	}
	return err
}

// Tags lists a repository's tags page by page (OCI distribution spec 1.1,
// "Listing Tags"), calling yield with each until it returns an error. known is
// the validator of the last listing, "" for none: when the list is still the
// same, unchanged is true and yield is not called. The validator is "" where the
// registry gives none, or has several pages, of which one says nothing of the
// others.
func (s *Session) Tags(ctx context.Context, repo, known string, yield func(TagPage) error) (validator string, unchanged bool, err error) {
	validator, unchanged, err = s.pages(ctx, pullScope(repo), "/v2/"+repo+"/tags/list", known, func(raw []byte) error {
		page, err := s.tagPage(raw)
		if err != nil {
			return err
		}
		return yield(page)
	})
	return validator, unchanged, renamed(err, s.registry.RegistryStr()+"/"+repo)
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
		return fault.New(fault.NotRegistry, err, "registry %s gave %s that cannot be read: check the host and port", s.registry, what)
	}
	return nil
}

// pages asks for a list and for what follows it.
func (s *Session) pages(ctx context.Context, scope, path, known string, yield func([]byte) error) (validator string, unchanged bool, err error) {
	next := path + "?n=" + strconv.Itoa(pageSize)
	seen := map[string]bool{}
	for page := 0; next != ""; page++ {
		if page >= maxPages || seen[next] {
			return "", false, fault.New(fault.RegistryError, nil, "registry %s gives lists that do not end (%s)", s.registry, path)
		}
		seen[next] = true
		var header http.Header
		if page == 0 && known != "" {
			header = http.Header{"If-None-Match": {known}}
		}
		resp, err := s.get(ctx, scope, next, header)
		if err != nil {
			return "", false, err
		}
		if resp.StatusCode == http.StatusNotModified {
			return known, true, discard(resp)
		}
		validator = resp.Header.Get("ETag")
		raw, err := readBounded(ctx, resp, maxPageSize, "a list of registry "+s.registry.RegistryStr())
		if err != nil {
			return "", false, err
		}
		if err := yield(raw); err != nil {
			return "", false, err
		}
		if next, err = s.following(next, resp.Header.Values("Link")); err != nil {
			return "", false, err
		}
		if page > 0 || next != "" {
			validator = ""
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
	base := url.URL{Scheme: s.registry.Scheme(), Host: s.registry.RegistryStr()}
	here, err := base.Parse(at)
	if err != nil {
		return "", fault.New(fault.Internal, err, "reading %q", at)
	}
	next, err := here.Parse(target)
	// Registries behind a proxy may name themselves with another scheme.
	if err != nil || next.Host != base.Host || !strings.HasPrefix(next.Path, "/v2/") {
		return "", fault.New(fault.RegistryError, nil, "registry %s continues a list at %q, which is not in it", s.registry, target)
	}
	return next.RequestURI(), nil
}

// nextLink finds the target with the relation "next" among Link headers.
func nextLink(links []string) (string, bool) {
	for _, l := range links {
		for l != "" {
			start := strings.IndexByte(l, '<')
			if start < 0 {
				break
			}
			end := strings.IndexByte(l[start:], '>')
			if end < 0 {
				break
			}
			target, params := l[start+1:start+end], l[start+end+1:]
			params, l, _ = strings.Cut(params, ",")
			for p := range strings.SplitSeq(params, ";") {
				k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
				if strings.EqualFold(k, "rel") && strings.EqualFold(strings.Trim(v, `"`), "next") {
					return target, true
				}
			}
		}
	}
	return "", false
}
