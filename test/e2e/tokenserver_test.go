package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

const (
	tokenLife = 30 * time.Second
	// leeway is how long after its end Distribution still takes a token.
	leeway = 60 * time.Second
)

// tokenServer signs tokens that hold for tokenLife (distribution's token
// specification, both its forms), and counts who asks.
type tokenServer struct {
	*httptest.Server
	key *ecdsa.PrivateKey

	mu     sync.Mutex
	allow  map[string]func(password string) bool // by user
	given  map[string][]string                   // tokens by user
	denied map[string]int
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenServer{key: key, allow: map[string]func(string) bool{}, given: map[string][]string{}, denied: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

// user lets a user in whose password is ok.
func (s *tokenServer) user(name string, ok func(password string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allow[name] = ok
}

// count is how many tokens a user got, and how often it was refused.
func (s *tokenServer) count(user string) (given, denied int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.given[user]), s.denied[user]
}

// tokens are all that a user got, the oldest first.
func (s *tokenServer) tokens(user string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.given[user]...)
}

func (s *tokenServer) serve(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	scopes := req.URL.Query()["scope"]
	if req.Method == http.MethodPost {
		user, password = req.PostFormValue("username"), req.PostFormValue("password")
		scopes = strings.Fields(req.PostFormValue("scope"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok := s.allow[user]; ok == nil || !ok(password) {
		s.denied[user]++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token, err := s.sign(user, scopes)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.given[user] = append(s.given[user], token)
	w.Header().Set("Content-Type", "application/json")
	// The client may have left: then nobody misses the token.
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": int(tokenLife / time.Second)})
}

// sign makes a JWT (RFC 7519) by ES256. It ends so early that the registry's
// leeway makes it tokenLife.
func (s *tokenServer) sign(user string, scopes []string) (string, error) {
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	var all []access
	for _, sc := range scopes {
		if f := strings.Split(sc, ":"); len(f) >= 3 {
			all = append(all, access{f[0], strings.Join(f[1:len(f)-1], ":"), strings.Split(f[len(f)-1], ",")})
		}
	}
	now := time.Now()
	var parts []string
	for _, p := range []any{
		map[string]any{"typ": "JWT", "alg": "ES256", "kid": "test"},
		map[string]any{
			"iss": "test", "sub": user, "aud": "registry", "iat": now.Unix(), "nbf": now.Unix() - 1,
			"exp": now.Add(tokenLife - leeway).Unix(), "jti": rand.Text(), "access": all,
		},
	} {
		b, err := json.Marshal(p)
		if err != nil {
			return "", err
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(b))
	}
	text := strings.Join(parts, ".")
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	sig := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// realm is the server's address by name: go-containerregistry goes to no address
// on loopback that another host names.
func (s *tokenServer) realm() string {
	return strings.Replace(s.URL, "127.0.0.1", "localhost", 1) + "/token"
}

// start starts CNCF Distribution, which takes the server's tokens only.
func (s *tokenServer) start(t *testing.T) *node.Registry {
	t.Helper()
	paths, err := tools.Ensure(t.Context(), os.Stderr, tools.Registry)
	if err != nil {
		t.Fatal(err)
	}
	public, err := s.key.PublicKey.Bytes() // 4, then both coordinates
	if err != nil {
		t.Fatal(err)
	}
	coordinate := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	jwks, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": "test", "alg": "ES256", "use": "sig",
		"x": coordinate(public[1:33]), "y": coordinate(public[33:]),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "jwks.json")
	if err := os.WriteFile(file, jwks, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := node.StartRegistry(t.Context(), paths[tools.Registry], filepath.Join(dir, "registry"),
		"--token", "realm="+s.realm(), "--token", "service=registry", "--token", "issuer=test", "--token", "jwks="+file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// gate stands before a registry and counts answers.
type gate struct {
	*httptest.Server
	mu     sync.Mutex
	ranges int // good answers to requests for part of a blob
	denied int // 401
}

func newGate(t *testing.T, addr string) *gate {
	t.Helper()
	g := &gate{}
	target := &url.URL{Scheme: "http", Host: addr}
	g.Server = httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Host = p.In.Host
		},
		ModifyResponse: func(resp *http.Response) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			switch resp.StatusCode {
			case http.StatusUnauthorized:
				g.denied++
			case http.StatusPartialContent:
				g.ranges++
			}
			return nil
		},
	})
	t.Cleanup(g.Close)
	return g
}

func (g *gate) host() string { return g.Listener.Addr().String() }

func (g *gate) counts() (ranges, denied int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ranges, g.denied
}
