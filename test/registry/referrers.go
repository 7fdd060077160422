package registry

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
)

// referrersPath is the distribution specification's "GET /v2/<name>/referrers/<digest>",
// manifestPath its "PUT /v2/<name>/manifests/<reference>".
var (
	referrersPath = regexp.MustCompile(`^/v2/(.+)/referrers/(sha256:[0-9a-f]{64})$`)
	manifestPath  = regexp.MustCompile(`^/v2/.+/manifests/[^/]+$`)
)

// referring completes api where it does less of OCI distribution 1.1 than a
// registry with a referrers API does: it says that it took note of a subject,
// lists artifacts by their own type, and filters by it.
func referring(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		m := referrersPath.FindStringSubmatch(req.URL.Path)
		switch {
		case req.Method == http.MethodGet && m != nil:
			serveReferrers(w, req, api, m[1])
		case req.Method == http.MethodPut && manifestPath.MatchString(req.URL.Path):
			raw, err := io.ReadAll(req.Body)
			if err != nil {
				ociError(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
				return
			}
			req.Body = io.NopCloser(bytes.NewReader(raw))
			var doc struct {
				Subject struct {
					Digest string `json:"digest"`
				} `json:"subject"`
			}
			if json.Unmarshal(raw, &doc) == nil && doc.Subject.Digest != "" {
				w.Header().Set("OCI-Subject", doc.Subject.Digest)
			}
			api.ServeHTTP(w, req)
		default:
			api.ServeHTTP(w, req)
		}
	})
}

func serveReferrers(w http.ResponseWriter, req *http.Request, api http.Handler, repo string) {
	answer := httptest.NewRecorder()
	api.ServeHTTP(answer, req)
	index := struct {
		SchemaVersion int              `json:"schemaVersion"`
		MediaType     string           `json:"mediaType"`
		Manifests     []map[string]any `json:"manifests"`
	}{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json", Manifests: []map[string]any{}}
	if answer.Code == http.StatusOK {
		if err := json.Unmarshal(answer.Body.Bytes(), &index); err != nil {
			ociError(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
			return
		}
	}
	want := req.URL.Query().Get("artifactType")
	kept := make([]map[string]any, 0, len(index.Manifests))
	for _, d := range index.Manifests {
		one := httptest.NewRecorder()
		digest, _ := d["digest"].(string)
		api.ServeHTTP(one, httptest.NewRequest(http.MethodGet, "/v2/"+repo+"/manifests/"+digest, nil))
		var doc struct {
			ArtifactType string `json:"artifactType"`
		}
		if json.Unmarshal(one.Body.Bytes(), &doc) == nil && doc.ArtifactType != "" {
			d["artifactType"] = doc.ArtifactType
		}
		if want == "" || d["artifactType"] == want {
			kept = append(kept, d)
		}
	}
	index.Manifests = kept
	if want != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	w.Header().Set("Content-Type", index.MediaType)
	_ = json.NewEncoder(w).Encode(index) // the client may have left
}
