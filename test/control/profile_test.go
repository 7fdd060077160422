package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	api "github.com/apparate/apparate/api/profile"
)

// profileBinding gives the role for profiles to the user as whom operators run.
const profileBinding = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: apparate-profiles}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: apparate-profiles}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}]
`

// sampled is what an agent of the tests sends.
type sampled struct {
	*world
	address, token string
}

// send hands a sample over, and returns the answer.
func (s *sampled) send(sample api.Sample) (code int, text string, err error) {
	b, err := json.Marshal(sample)
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+s.address+api.SamplesPath, bytes.NewReader(b))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	out, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(out), errors.Join(err, resp.Body.Close())
}

// TestProfiles: what a node says that a start read becomes a profile beside the image, in
// a registry that lists no referrers; the next version of the image takes it over. A
// replica that does not lead says so.
func TestProfiles(t *testing.T) {
	w := newWorld(t, options{stopped: true})
	s := &sampled{world: w, address: freeAddress(t)}
	w.args = append(w.args, "--samples-address", s.address, "--samples-account", w.namespace+"/node")
	if _, err := w.kubectl("", "create", "serviceaccount", "node"); err != nil {
		t.Fatal(err)
	}
	w.apply(profileBinding)
	admin, err := kubernetes.NewForConfig(w.cluster.Config)
	if err != nil {
		t.Fatal(err)
	}
	token, err := admin.CoreV1().ServiceAccounts(w.namespace).CreateToken(t.Context(), "node",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{api.SamplesAudience}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.token = token.Status.Token
	w.start()
	w.ready()
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	w.push("nginx:1", image(t, "nginx 1"))
	w.accelerated("nginx:1")
	digest := func(tag string) string {
		d, err := remote.Head(w.ref("nginx:" + tag + "-apparate"))
		if err != nil {
			t.Fatal(err)
		}
		return d.Digest.String()
	}
	var l api.SampleLayer
	for n, content := range []string{strings.Repeat("the same in all images ", 4000), "not of this image", strings.Repeat("nginx 1", 3000)} {
		l.Add(sha256.Sum256([]byte(content)), uint32(n))
	}
	start := api.Sample{Image: w.registry.Addr + "/nginx", Manifest: digest("1"), Platform: "linux/amd64", Started: time.Now().UTC(), Layers: []api.SampleLayer{l}}
	if code, text, err := s.send(start); err != nil || code != http.StatusAccepted {
		t.Fatalf("%d %s %v", code, text, err)
	}
	profiles := func(result string, want int) {
		t.Helper()
		w.eventually(fmt.Sprintf("%d profiles are %s", want, result), func() error {
			if m := w.metric("apparate_profiles_total"); !strings.Contains(m, fmt.Sprintf(`{result=%q} %d`, result, want)) {
				return errors.New(m)
			}
			return nil
		})
	}
	profiles("published", 1)
	// The index under the tag that stands in for a list.
	fallback := func(tag string) error {
		_, err := remote.Index(w.ref("nginx:sha256-" + strings.TrimPrefix(digest(tag), "sha256:")))
		return err
	}
	if err := fallback("1"); err != nil {
		t.Error(err)
	}
	w.eventually("the conversion tells", func() error {
		out, err := w.kubectl("", "get", "events", "--field-selector", "reason=ProfilePublished", "-o", "jsonpath={.items[*].involvedObject.name} {.items[*].message}")
		if err == nil && (!strings.HasPrefix(out, "nginx-1-") || !strings.Contains(out, "2 chunks")) {
			err = errors.New(out)
		}
		return err
	})
	w.push("nginx:2", image(t, "nginx 2"))
	w.accelerated("nginx:2")
	profiles("inherited", 1)
	if err := fallback("2"); err != nil {
		t.Error(err)
	}
	s.token = "nobody's"
	if code, text, err := s.send(start); err != nil || code != http.StatusUnauthorized {
		t.Errorf("a stranger's sample: %d %s %v", code, text, err)
	}
}
