package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// blobPath is the distribution specification's "GET /v2/<name>/blobs/<digest>".
var blobPath = regexp.MustCompile(`^/v2/.+/blobs/(sha256:[0-9a-f]{64})$`)

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

// frontHandler serves the registry API. Blobs are read here and not by api, which
// knows only ranges with both ends inside the blob.
func (r *Registry) frontHandler(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rec := r.record(w, req, "registry")
		defer rec.done()
		if req.URL.Path == "/token" {
			r.auth.serveToken(rec, req)
			return
		}
		m := blobPath.FindStringSubmatch(req.URL.Path)
		blob := m != nil && req.Method == http.MethodGet
		var fault Fault
		if blob {
			fault = r.plan.next()
		}
		switch {
		case !r.auth.allowed(req):
			// A request without credentials gets its challenge first: a fault is
			// for a request that would have been served.
			r.challenge(rec, req)
		case !blob:
			api.ServeHTTP(rec, req)
		case r.store != nil && fault == "":
			u := url.URL{Scheme: "http", Host: r.StoreHost(), Path: "/store/" + m[1], RawQuery: r.signs.query().Encode()}
			if r.pki != nil {
				u.Scheme = "https"
			}
			http.Redirect(rec, req, u.String(), http.StatusTemporaryRedirect)
		default:
			r.serveBlob(rec, req, m[1], fault)
		}
	})
}

// serveStore is the storage host behind WithRedirect.
func (r *Registry) serveStore(w http.ResponseWriter, req *http.Request) {
	rec := r.record(w, req, "storage")
	defer rec.done()
	d, ok := strings.CutPrefix(req.URL.Path, "/store/")
	switch {
	case !ok:
		http.NotFound(rec, req)
	case req.Header.Get("Authorization") != "":
		storeError(rec, http.StatusBadRequest, "InvalidArgument", "Only one auth mechanism allowed")
	default:
		fault := r.plan.next()
		if fault == "" && !r.signs.good(req.URL.Query()) {
			fault = RedirectExpired
		}
		r.serveBlob(rec, req, d, fault)
	}
}

// serveBlob sends the blob or the part of it that the request names, or the fault.
func (r *Registry) serveBlob(w *recorder, req *http.Request, d string, fault Fault) {
	h, err := v1.NewHash(d)
	if err != nil {
		ociError(w, http.StatusBadRequest, "DIGEST_INVALID", "the digest is malformed")
		return
	}
	rc, err := r.blobs.Get(req.Context(), "", h)
	if err != nil {
		ociError(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	defer func() { _ = rc.Close() }() // memory
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d)
	if content, ok := rc.(io.ReadSeeker); ok && fault == "" {
		http.ServeContent(w, req, "", time.Time{}, content) // without a copy of the blob
		return
	}
	data, err := io.ReadAll(rc)
	switch {
	case err != nil:
		ociError(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
	case fault != "":
		r.fail(w, req, fault, data)
	default:
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
	}
}

// challenge is the answer to a request without good credentials.
func (r *Registry) challenge(w http.ResponseWriter, req *http.Request) {
	r.auth.challenge(w, req, r.URL())
	ociError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

// ociError is the error document of the distribution specification.
func ociError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// storeError is the error document of S3 and its like.
func storeError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}
