package profile_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/controllers/profile"
	"github.com/apparate/apparate/test/kube"
	"github.com/apparate/apparate/test/tools"
)

const binding = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: apparate-profiles}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: apparate-profiles}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}]
`

// desk is a receiver that takes everything that is allowed to come to it.
type desk struct {
	*profile.Receiver
	t       *testing.T
	leads   bool
	clock   time.Time
	taken   []string // node and image
	counts  map[profile.Verdict]int
	reviews int
	review  func(context.Context, *authenticationv1.TokenReview) error
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, leads: true, clock: time.Now(), counts: map[profile.Verdict]int{}}
	now := func() time.Time { return d.clock }
	d.review = func(_ context.Context, r *authenticationv1.TokenReview) error {
		node, _, ok := strings.Cut(r.Spec.Token, " of ")
		r.Status.Authenticated, r.Status.Audiences = ok, r.Spec.Audiences
		r.Status.User.Username = "system:serviceaccount:system:node"
		r.Status.User.Extra = map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/node-name": {node}}
		return nil
	}
	d.Receiver = &profile.Receiver{
		Gate: &profile.Gate{
			Review: func(ctx context.Context, r *authenticationv1.TokenReview) error {
				d.reviews++
				return d.review(ctx, r)
			},
			Account: types.NamespacedName{Namespace: "system", Name: "node"}, Now: now,
		},
		Leads: func() bool { return d.leads },
		Take: func(_ context.Context, node string, s *api.Sample, _ int64) (profile.Verdict, error) {
			d.taken = append(d.taken, node+" "+s.Image)
			return profile.Taken, nil
		},
		Count: func(v profile.Verdict) { d.counts[v]++ },
		Now:   now,
	}
	return d
}

// send posts a body with a token, and expects a status.
func (d *desk) send(what, token string, body []byte, header map[string]string, want int) {
	d.t.Helper()
	req := httptest.NewRequestWithContext(d.t.Context(), http.MethodPost, api.SamplesPath, bytes.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, req)
	if w.Code != want {
		d.t.Errorf("%s: %d %s, want %d", what, w.Code, w.Body, want)
	}
}

var gzipped = map[string]string{"Content-Encoding": "gzip"}

func compress(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(text)
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sample is a good one, as JSON.
func sample(t *testing.T, change ...func(*api.Sample)) []byte {
	t.Helper()
	s := api.Sample{
		Image: "r.example/team/app", Manifest: "sha256:" + strings.Repeat("b", 64), Platform: "linux/amd64", Started: time.Unix(1_700_000_000, 0).UTC(),
		Layers: []api.SampleLayer{{Digest: "sha256:" + strings.Repeat("c", 64), TOCDigest: "sha256:" + strings.Repeat("d", 64), Chunks: make([]byte, 64), At: []uint32{1, 2}}},
	}
	for _, f := range change {
		f(&s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestReceiver: who it is from comes first; then what it is.
func TestReceiver(t *testing.T) {
	d := newDesk(t)
	good := sample(t)
	d.send("good", "n1 of ours", compress(t, good), gzipped, http.StatusAccepted)
	d.send("not compressed", "n1 of ours", good, nil, http.StatusAccepted)
	if fmt.Sprint(d.taken) != "[n1 r.example/team/app n1 r.example/team/app]" || d.reviews != 1 {
		t.Errorf("taken are %v, with %d reviews", d.taken, d.reviews)
	}
	d.send("no token", "", good, nil, http.StatusUnauthorized)
	d.send("a stranger", "stranger", good, nil, http.StatusUnauthorized)
	d.send("a stranger again", "stranger", good, nil, http.StatusUnauthorized)
	d.send("a token without end", strings.Repeat("x", 20000), good, nil, http.StatusUnauthorized)
	if d.reviews != 2 {
		t.Errorf("%d reviews", d.reviews)
	}
	d.clock = d.clock.Add(time.Hour)
	d.send("good, an hour later", "n1 of ours", good, nil, http.StatusAccepted)
	if d.reviews != 3 {
		t.Errorf("%d reviews: a token is believed for ever", d.reviews)
	}
	d.review = func(context.Context, *authenticationv1.TokenReview) error { return errors.New("secret trouble") }
	d.send("the API server is away", "n2 of ours", good, nil, http.StatusServiceUnavailable)
	d.leads = false
	d.send("not the leader", "n1 of ours", good, nil, http.StatusMisdirectedRequest)
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, api.SamplesPath, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
	if d.counts[profile.Taken] != 3 || d.counts[profile.Unauthenticated] != 4 || d.counts[profile.NotLeading] != 1 || d.counts[profile.Failed] != 1 {
		t.Errorf("counted are %v", d.counts)
	}
}

// TestHostile: what cannot be a sample is refused for good, and costs no more memory
// than a sample.
func TestHostile(t *testing.T) {
	d := newDesk(t)
	many := []byte(`{"image":"r.example/a","manifest":"sha256:` + strings.Repeat("b", 64) + `","layers":[` + strings.Repeat("{},", 1_000_000) + `{}]}`)
	for name, c := range map[string]struct {
		body   []byte
		header map[string]string
		want   int
	}{
		"no JSON":           {[]byte("<html>"), nil, http.StatusUnprocessableEntity},
		"nothing":           {nil, nil, http.StatusUnprocessableEntity},
		"no gzip":           {sample(t), gzipped, http.StatusUnprocessableEntity},
		"half a gzip":       {compress(t, sample(t))[:100], gzipped, http.StatusUnprocessableEntity},
		"another encoding":  {sample(t), map[string]string{"Content-Encoding": "br"}, http.StatusUnprocessableEntity},
		"a bomb":            {compress(t, make([]byte, 1<<30/4)), gzipped, http.StatusRequestEntityTooLarge},
		"a huge body":       {bytes.Repeat([]byte(" "), api.MaxSampleBody+1), nil, http.StatusRequestEntityTooLarge},
		"a million layers":  {compress(t, many), gzipped, http.StatusUnprocessableEntity},
		"half a chunk":      {sample(t, func(s *api.Sample) { s.Layers[0].Chunks = s.Layers[0].Chunks[:40] }), nil, http.StatusUnprocessableEntity},
		"no digest":         {sample(t, func(s *api.Sample) { s.Manifest = "../../latest" }), nil, http.StatusUnprocessableEntity},
		"deep":              {[]byte(strings.Repeat(`{"layers":`, 500) + "1" + strings.Repeat("}", 500)), nil, http.StatusUnprocessableEntity},
		"a list of samples": {[]byte("[" + string(sample(t)) + "]"), nil, http.StatusUnprocessableEntity},
	} {
		d.send(name, name+" of ours", c.body, c.header, c.want)
	}
	if len(d.taken) != 0 {
		t.Errorf("taken are %v", d.taken)
	}
}

// TestPace: a node may not send without end, and strangers may not have the API server
// asked without end.
func TestPace(t *testing.T) {
	d := newDesk(t)
	const tries = 200
	for range tries {
		d.send("", "n1 of ours", []byte("{"), nil, map[bool]int{true: http.StatusUnprocessableEntity, false: http.StatusTooManyRequests}[d.counts[profile.Malformed] < 80])
	}
	if n := d.counts[profile.TooMany]; n != tries-80 {
		t.Errorf("%d were too many", n)
	}
	d.send("another node", "n2 of ours", sample(t), nil, http.StatusAccepted)
	d.clock = d.clock.Add(10 * time.Second)
	d.send("later", "n1 of ours", sample(t), nil, http.StatusAccepted)
	before := d.reviews
	for i := range tries {
		d.send("a stranger", fmt.Sprint("stranger", i), nil, nil, map[bool]int{true: http.StatusUnauthorized, false: http.StatusServiceUnavailable}[d.reviews-before < 100])
	}
	if n := d.reviews - before; n != 100 {
		t.Errorf("the API server was asked %d times", n)
	}
	d.send("whom we know", "n1 of ours", sample(t), nil, http.StatusAccepted)
}

// TestTokens: a real API server tells whose tokens are whose, and the right to ask it is
// that of config/rbac.
func TestTokens(t *testing.T) {
	ctx := t.Context()
	c := kube.Start(t, kube.Options{})
	root, err := tools.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"create", "namespace", "apparate-system"}, {"apply", "-f", filepath.Join(root, "config", "rbac", "role.yaml")}, {"apply", "-f", "-"},
		{"create", "namespace", "system"}, {"-n", "system", "create", "serviceaccount", "node"}, {"-n", "system", "create", "serviceaccount", "other"},
		{"create", "namespace", "foreign"}, {"-n", "foreign", "create", "serviceaccount", "node"},
	} {
		if out, bad, err := c.Kubectl(ctx, binding, args...); err != nil {
			t.Fatal(err, out, bad)
		}
	}
	admin, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	config, _, err := c.User("operator")
	if err != nil {
		t.Fatal(err)
	}
	operator, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	d.review = func(ctx context.Context, r *authenticationv1.TokenReview) error {
		got, err := operator.AuthenticationV1().TokenReviews().Create(ctx, r, metav1.CreateOptions{})
		if err == nil {
			*r = *got
		}
		return err
	}
	pod, err := admin.CoreV1().Pods("system").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "node-x"},
		Spec:       corev1.PodSpec{ServiceAccountName: "node", NodeName: "worker", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := func(ns, account string, audiences []string, bound *authenticationv1.BoundObjectReference) string {
		r, err := admin.CoreV1().ServiceAccounts(ns).CreateToken(ctx, account, &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: bound},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Token
	}
	ours := []string{api.SamplesAudience}
	good := sample(t)
	d.send("the agent", token("system", "node", ours, &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}), good, nil, http.StatusAccepted)
	d.send("its token for the API server", token("system", "node", nil, nil), good, nil, http.StatusUnauthorized)
	d.send("another account", token("system", "other", ours, nil), good, nil, http.StatusUnauthorized)
	d.send("the account of the same name elsewhere", token("foreign", "node", ours, nil), good, nil, http.StatusUnauthorized)
	d.send("nonsense", "nonsense", good, nil, http.StatusUnauthorized)
	if len(d.taken) != 1 || !strings.HasSuffix(d.taken[0], " r.example/team/app") || strings.HasPrefix(d.taken[0], "system:") {
		t.Errorf("taken are %v", d.taken)
	}
	t.Logf("taken: %v", d.taken)
}

// FuzzSample: nothing that is sent as a sample does harm.
func FuzzSample(f *testing.F) {
	f.Add([]byte(`{"image":"a/b","manifest":"sha256:0","layers":[{"chunks":"AAAA","at":[1]}]}`), false)
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, true)
	f.Fuzz(func(t *testing.T, body []byte, z bool) {
		d := newDesk(t)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, api.SamplesPath, bytes.NewReader(body))
		req.Header.Set("Authorization", "Bearer n of ours")
		if z {
			req.Header.Set("Content-Encoding", "gzip")
		}
		w := httptest.NewRecorder()
		d.ServeHTTP(w, req)
		if _, err := io.ReadAll(w.Body); err != nil || (w.Code == http.StatusAccepted) != (len(d.taken) == 1) {
			t.Errorf("%d, taken are %v, %v", w.Code, d.taken, err)
		}
	})
}
