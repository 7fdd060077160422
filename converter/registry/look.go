package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/apparate/apparate/converter/fault"
)

// schema1 is how the types of Docker's oldest manifests begin. Registries send
// them whatever is accepted.
const schema1 = "application/vnd.docker.distribution.manifest.v1+"

// acceptManifests are the types that are understood.
var acceptManifests = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

// Names that may stand in a path. The names of repositories and tags come from
// the registry's own lists, and must not lead to other paths or scopes. Of
// repositories a little more is let through than OCI's grammar knows; tags are as
// in the distribution specification, "Pulling manifests".
var (
	repoName   = regexp.MustCompile(`^[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*$`)
	tagName    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestName = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

const maxRepoName = 255

// Look fetches the manifest under a tag or digest of a repository, unless it is
// still the one with the digest known, "" for none: then changed is false.
// Registries that understand conditional requests send nothing in that case, and
// m is empty. It costs one request, once the right to the repository is there.
//
// A manifest in Docker's schema 1 is a fault of kind NotImage.
func (s *Session) Look(ctx context.Context, repo, reference, known string) (m Manifest, changed bool, err error) {
	if err := s.checkRepo(repo); err != nil {
		return Manifest{}, false, err
	}
	byDigest := digestName.MatchString(reference)
	if !byDigest && !tagName.MatchString(reference) {
		return Manifest{}, false, fault.New(fault.BadName, nil, "%.300q in %s/%s is no tag and no sha256 digest", reference, s.host(), repo)
	}
	what := s.host() + "/" + repo + ":" + reference
	if byDigest {
		what = s.host() + "/" + repo + "@" + reference
	}
	header := http.Header{"Accept": {acceptManifests}}
	if known != "" {
		header.Set("If-None-Match", `"`+known+`"`)
	}
	resp, err := s.get(ctx, question{scope: pullScope(repo), path: "/v2/" + repo + "/manifests/" + reference, header: header, what: what})
	if err != nil {
		return Manifest{}, false, err
	}
	if resp.StatusCode == http.StatusNotModified {
		discard(resp)
		return Manifest{}, false, nil
	}
	raw, err := readBounded(ctx, resp, MaxManifestSize, fault.ImageInvalid, "the manifest of "+what)
	if err != nil {
		return Manifest{}, false, err
	}
	m = Manifest{Raw: raw, MediaType: mediaType(resp), Digest: digestOf(raw)}
	said := resp.Header.Get("Docker-Content-Digest")
	if byDigest {
		said = reference
	}
	switch {
	case m.MediaType == "text/html":
		err = fault.New(fault.NotRegistry, nil, "%s answers with a web page: it is no OCI registry; check the host and port", s.host())
	case strings.HasPrefix(m.MediaType, schema1): // of which the digest leaves the signature out
		err = fault.New(fault.NotImage, nil, "%s has Docker's old manifest format, schema 1: push it again with a newer client", what)
	case strings.HasPrefix(said, "sha256:") && said != m.Digest:
		err = fault.NewTemporary(fault.ImageInvalid, nil, "the manifest of %s is said to be %.100s and is %s: it was damaged on its way, or in the registry", what, said, m.Digest)
	default:
		return m, m.Digest != known, nil
	}
	return Manifest{}, false, err
}

// ReadBlob reads a small blob, such as a config, whole: at most size bytes, which
// must not be more than MaxManifestSize. size is what the manifest says of it.
func (s *Session) ReadBlob(ctx context.Context, repo, digest string, size int64) ([]byte, error) {
	if err := s.checkRepo(repo); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("blob %.100s of %s/%s", digest, s.host(), repo)
	switch {
	case !digestName.MatchString(digest):
		return nil, fault.New(fault.ImageInvalid, nil, "digest %.100q of a blob of %s/%s is no sha256 digest", digest, s.host(), repo)
	case size < 0 || size > MaxManifestSize:
		return nil, fault.New(fault.ImageInvalid, nil, "%s is said to have %d bytes; from 0 to %d are read", what, size, MaxManifestSize)
	}
	resp, err := s.get(ctx, question{scope: pullScope(repo), path: "/v2/" + repo + "/blobs/" + digest, what: s.host() + "/" + repo})
	var e *fault.Error
	if errors.As(err, &e) && e.Kind == fault.NotFound {
		return nil, fault.New(fault.ContentMissing, e.Err, "%s/%s refers to blob %s, which the registry does not have: push the image again", s.host(), repo, digest)
	}
	if err != nil {
		return nil, err
	}
	raw, err := readBounded(ctx, resp, size, fault.ImageInvalid, what)
	if err != nil {
		return nil, err
	}
	if digestOf(raw) != digest {
		return nil, fault.NewTemporary(fault.LayerCorrupt, nil,
			"%s is damaged: its bytes have another digest; try again, and push the image again if that does not help", what)
	}
	return raw, nil
}

// checkRepo refuses names that would lead to other paths or scopes.
func (s *Session) checkRepo(repo string) error {
	if len(repo) > maxRepoName || !repoName.MatchString(repo) {
		return fault.New(fault.BadName, nil, "%.300q is no name of a repository such as team/app (registry %s)", repo, s.host())
	}
	return nil
}

func pullScope(repo string) string { return "repository:" + repo + ":pull" }

func digestOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// mediaType is the answer's, without parameters.
func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// readBounded reads and closes a body of at most limit bytes; a longer one is a
// fault of kind tooLong.
func readBounded(ctx context.Context, resp *http.Response, limit int64, tooLong fault.Kind, what string) ([]byte, error) {
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(resp.Body, limit+1))
	_ = resp.Body.Close() // all that is wanted of it was read, or reading has failed
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case n > limit:
		return nil, fault.New(tooLong, nil, "%s has more than the %d bytes that are read", what, limit)
	case err != nil:
		return nil, fault.NewTemporary(fault.Unreachable, withoutURL(err), "%s broke off after %d bytes", what, n)
	}
	return b.Bytes(), nil
}
