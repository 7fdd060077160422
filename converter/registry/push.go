package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/apparate/apparate/converter/fault"
)

// cancelPatience is how long giving up an upload may take. It is a courtesy:
// registries forget uploads that nobody goes on with.
const cancelPatience = 5 * time.Second

// CheckPush says whether the credentials allow to push to the repository, by
// beginning an upload and giving it up. A token alone does not tell: some
// registries give one to everybody.
func (c *Client) CheckPush(ctx context.Context, repo name.Repository) error {
	client, err := c.connect(ctx, repo, transport.PushScope, push)
	if err != nil {
		return err
	}
	u := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/blobs/uploads/", repo.RepositoryStr())}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), http.NoBody)
	if err != nil {
		return fault.New(fault.BadName, err, "%s", repo)
	}
	resp, err := client.Do(req)
	if err != nil {
		return classify(ctx, push, repo.String(), err)
	}
	defer func() { _ = resp.Body.Close() }() // the answer is in the header
	if err := transport.CheckError(resp, http.StatusAccepted, http.StatusCreated); err != nil {
		return classify(ctx, push, repo.String(), err)
	}
	if loc, err := resp.Location(); err == nil && loc.Host == resp.Request.URL.Host {
		cancelUpload(ctx, client, loc)
	}
	return nil
}

// cancelUpload gives up an upload. It does not matter whether that works.
func cancelUpload(ctx context.Context, client *http.Client, loc *url.URL) {
	ctx, cancel := context.WithTimeout(ctx, cancelPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, loc.String(), http.NoBody)
	if err != nil {
		return
	}
	if resp, err := client.Do(req); err == nil {
		_ = resp.Body.Close() // see above
	}
}
