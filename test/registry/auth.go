package registry

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// auth checks credentials and gives out tokens.
type auth struct {
	scheme string
	uses   int // of a token; 0: without end

	mu             sync.Mutex
	user, password string
	issued         int
	left           map[string]int
}

func newAuth(o options) *auth {
	return &auth{scheme: o.scheme, uses: o.tokenUses, user: o.user, password: o.password, left: map[string]int{}}
}

// allowed says whether the request has good credentials. It spends one use of a token.
func (a *auth) allowed(req *http.Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.scheme {
	case "":
		return true
	case "Basic":
		return a.known(req.BasicAuth())
	}
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	left, found := a.left[token]
	switch {
	case !ok || !found:
		return false
	case a.uses == 0:
		return true
	case left == 0:
		return false
	}
	a.left[token]--
	return true
}

// known says whether these are the user name and password. The lock is held.
func (a *auth) known(user, password string, ok bool) bool {
	return ok && user == a.user && subtle.ConstantTimeCompare([]byte(password), []byte(a.password)) == 1
}

// challenge says in the header how to get in.
func (a *auth) challenge(w http.ResponseWriter, req *http.Request, base string) {
	if a.scheme != "Bearer" {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		return
	}
	repo := strings.TrimPrefix(req.URL.Path, "/v2/")
	for _, end := range []string{"/blobs/", "/manifests/", "/tags/"} {
		repo, _, _ = strings.Cut(repo, end)
	}
	c := fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:%s:pull"`, base, repo)
	if req.Header.Get("Authorization") != "" {
		c += `,error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", c)
}

// serveToken is the token endpoint: GET with Basic credentials (distribution's
// token specification) and POST with a form (its OAuth2 form).
func (a *auth) serveToken(w http.ResponseWriter, req *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ok bool
	if req.Method == http.MethodPost {
		ok = req.ParseForm() == nil && a.known(req.PostForm.Get("username"), req.PostForm.Get("password"), true)
	} else {
		ok = a.known(req.BasicAuth())
	}
	if a.scheme != "Bearer" || !ok {
		ociError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user name or password")
		return
	}
	a.issued++
	token := fmt.Sprintf("secret-token-%d", a.issued)
	a.left[token] = a.uses
	w.Header().Set("Content-Type", "application/json")
	// The client may have left: then nobody misses the token.
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

// Tokens is how many tokens were given out.
func (r *Registry) Tokens() int {
	r.auth.mu.Lock()
	defer r.auth.mu.Unlock()
	return r.auth.issued
}

// ExpireTokens makes all tokens so far invalid.
func (r *Registry) ExpireTokens() {
	r.auth.mu.Lock()
	defer r.auth.mu.Unlock()
	clear(r.auth.left)
}

// SetPassword rotates the credentials and makes all tokens so far invalid.
func (r *Registry) SetPassword(user, password string) {
	r.auth.mu.Lock()
	defer r.auth.mu.Unlock()
	r.auth.user, r.auth.password = user, password
	clear(r.auth.left)
}
