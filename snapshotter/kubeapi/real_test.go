package kubeapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/apparate/apparate/snapshotter/kubeapi"
	"github.com/apparate/apparate/test/kube"
)

// object is as much of an object as is looked at here.
type object struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Data map[string]string `json:"data"`
}

// TestServer does with a real API server what a node does.
func TestServer(t *testing.T) {
	k := kube.Start(t, kube.Options{})
	c, err := kubeapi.New(k.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("objects", func(t *testing.T) { objects(t, c) })
	t.Run("watch", func(t *testing.T) { watch(t, c, "/api/v1/namespaces/"+k.Namespace(t)+"/configmaps") })
	t.Run("pages", func(t *testing.T) { pages(t, c, "/api/v1/namespaces/"+k.Namespace(t)+"/configmaps") })
	t.Run("pod", func(t *testing.T) { asPod(t, k) })
}

// objects are made, read, changed in each way, and removed.
func objects(t *testing.T, c *kubeapi.Client) {
	ctx := t.Context()
	const path = "/api/v1/nodes/n1"
	if err := c.Get(ctx, path, &object{}); !kubeapi.IsNotFound(err) || err.Error() != `GET /api/v1/nodes/n1: nodes "n1" not found` {
		t.Errorf("not there: %v", err)
	}
	if err := c.Get(ctx, "/apis/none.example.com/v1/nothings", nil); !kubeapi.IsNotFound(err) {
		t.Errorf("an unknown kind: %v", err)
	}
	node := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "n1"}}
	var n object
	if err := c.Create(ctx, "/api/v1/nodes", node, &n); err != nil || n.Metadata.Name != "n1" || n.Metadata.UID == "" {
		t.Fatal(n, err)
	}
	if err := c.Create(ctx, "/api/v1/nodes", node, nil); !kubeapi.IsConflict(err) {
		t.Errorf("there already: %v", err)
	}
	for kind, patch := range map[string]string{
		kubeapi.MergePatch: `{"metadata":{"annotations":{"a":"1"}}}`, kubeapi.JSONPatch: `[{"op":"add","path":"/metadata/labels","value":{"b":"2"}}]`,
	} {
		if err := c.Patch(ctx, path, kind, json.RawMessage(patch), nil); err != nil {
			t.Error(err)
		}
	}
	condition := map[string]any{"status": map[string]any{"conditions": []any{map[string]any{"type": "ApparateReady", "status": "True"}}}}
	if err := c.Patch(ctx, path+"/status", kubeapi.StrategicMergePatch, condition, &n); err != nil || n.Metadata.Annotations["a"] != "1" {
		t.Errorf("%+v, %v", n, err)
	}
	stale := map[string]any{"metadata": map[string]any{"resourceVersion": "1", "annotations": map[string]string{"a": "2"}}}
	if err := c.Patch(ctx, path, kubeapi.MergePatch, stale, nil); !kubeapi.IsConflict(err) {
		t.Errorf("changed by another: %v", err)
	}
	var s *kubeapi.StatusError
	if err := c.Patch(ctx, path, kubeapi.JSONPatch, []byte(`[{"op":"test","path":"/kind","value":"x"}]`), nil); !errors.As(err, &s) || s.Code != 422 || s.Reason != "Invalid" {
		t.Errorf("a patch that does not fit: %v", err)
	}
	other := map[string]any{"preconditions": map[string]string{"uid": "other"}}
	if err := c.Delete(ctx, path, other, nil); !kubeapi.IsConflict(err) {
		t.Errorf("another object is deleted: %v", err)
	}
	if err := c.Delete(ctx, path, nil, nil); err != nil {
		t.Error(err)
	}
	if err := c.Delete(ctx, path, nil, nil); !kubeapi.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
}

func configMap(name string) map[string]any {
	return map[string]any{"metadata": map[string]any{"name": name}, "data": map[string]string{"k": "1"}}
}

// A list, and what happens after it.
func watch(t *testing.T, c *kubeapi.Client, path string) {
	ctx := t.Context()
	list := func() (names []string, version string) {
		t.Helper()
		version, err := c.List(ctx, path, func(raw json.RawMessage) error {
			var o object
			names = append(names, o.Metadata.Name)
			return json.Unmarshal(raw, &o)
		})
		if err != nil {
			t.Fatal(err)
		}
		return names, version
	}
	if err := c.Create(ctx, path, configMap("a"), nil); err != nil {
		t.Fatal(err)
	}
	names, version := list()
	if len(names) != 1 {
		t.Fatal(names)
	}
	if err := errors.Join(c.Create(ctx, path, configMap("b"), nil), c.Patch(ctx, path+"/b", kubeapi.MergePatch, json.RawMessage(`{"data":{"k":"2"}}`), nil),
		c.Delete(ctx, path+"/a", nil, nil)); err != nil {
		t.Fatal(err)
	}
	done := errors.New("done")
	var got []string
	err := c.Watch(ctx, path+"?fieldSelector="+url.QueryEscape("metadata.name!=c"), version, func(kind string, raw json.RawMessage) error {
		if kind == "BOOKMARK" {
			return nil
		}
		var o object
		err := json.Unmarshal(raw, &o)
		if got = append(got, kind+" "+o.Metadata.Name+" "+o.Data["k"]); len(got) == 3 {
			return done
		}
		return err
	})
	if want := []string{"ADDED b 1", "MODIFIED b 2", "DELETED a 1"}; !errors.Is(err, done) || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	ended, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, version = list()
	if err := c.Watch(ended, path, version, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a quiet watch ends with %v", err)
	}
}

// More objects than a page has.
func pages(t *testing.T, c *kubeapi.Client, path string) {
	const most = 260
	for i := range most {
		if err := c.Create(t.Context(), path, configMap(fmt.Sprint("m", i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	version, err := c.List(t.Context(), path, func(json.RawMessage) error { n++; return nil })
	if err != nil || n != most || version == "" {
		t.Errorf("%d objects at %s, %v", n, version, err)
	}
}

// A pod's token says who we are and what we may do.
func asPod(t *testing.T, k *kube.Cluster) {
	admin, err := kubernetes.NewForConfig(k.Config)
	if err != nil {
		t.Fatal(err)
	}
	ns := k.Namespace(t)
	if _, stderr, err := k.Kubectl(t.Context(), "", "-n", ns, "create", "serviceaccount", "node"); err != nil {
		t.Fatal(stderr)
	}
	token, err := admin.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "node", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	dir := filepath.Join(root, "var/run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := rest.LoadTLSFiles(k.Config); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca.crt"), string(k.Config.CAData))
	write(t, filepath.Join(dir, "token"), token.Status.Token)
	server, err := url.Parse(k.Config.Host)
	if err != nil || server.Port() == "" {
		host, port, _ := strings.Cut(k.Config.Host, ":")
		server = &url.URL{Host: host + ":" + port}
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", server.Hostname())
	t.Setenv("KUBERNETES_SERVICE_PORT", server.Port())
	c, err := kubeapi.InCluster(root)
	if err != nil {
		t.Fatal(err)
	}
	var review struct {
		Status struct {
			UserInfo struct {
				Username string `json:"username"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	who := map[string]string{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
	if err := c.Create(t.Context(), "/apis/authentication.k8s.io/v1/selfsubjectreviews", who, &review); err != nil || review.Status.UserInfo.Username != "system:serviceaccount:"+ns+":node" {
		t.Errorf("%+v, %v", review, err)
	}
	err = c.Get(t.Context(), "/api/v1/namespaces/"+ns+"/secrets/s", nil)
	if !kubeapi.IsForbidden(err) || !strings.Contains(err.Error(), `cannot get resource "secrets"`) || strings.Contains(err.Error(), token.Status.Token) {
		t.Errorf("forbidden: %v", err)
	}
	if _, stderr, err := k.Kubectl(t.Context(), "", "-n", ns, "delete", "serviceaccount", "node"); err != nil {
		t.Fatal(stderr)
	}
	for range 200 { // the server remembers tokens for ten seconds
		if err = c.Get(t.Context(), "/version/", nil); err != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !kubeapi.IsForbidden(err) || strings.Contains(err.Error(), token.Status.Token) {
		t.Errorf("without the service account: %v", err)
	}
}
