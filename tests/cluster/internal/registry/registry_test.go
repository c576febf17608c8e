package registry

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/opensandbox/operator/tests/cluster/internal/image"
)

// serve starts a registry with one image, docker.io/library/nginx:latest.
func serve(t *testing.T, allow ...string) (host, digest string) {
	store := image.Store{Dir: t.TempDir()}
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put("nginx", img, ""); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&Server{Images: store.Dir, Allow: allow})
	t.Cleanup(server.Close)
	hash, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(server.URL, "http://"), hash.String()
}

func status(t *testing.T, method, url string) int {
	t.Helper()
	request, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func TestAStoredImageCanBePulled(t *testing.T) {
	host, digest := serve(t, "127.0.0.1")
	ref, err := name.ParseReference(host+"/docker.io/library/nginx:latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	got, err := img.Digest()
	if err != nil || got.String() != digest {
		t.Errorf("got digest %s, %v, want %s", got, err, digest)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			t.Error(err)
		}
	}
}

func TestRequests(t *testing.T) {
	host, digest := serve(t, "127.0.0.1")
	for _, test := range []struct {
		name, method, path string
		want               int
	}{
		{"the node finds a tag by the registry that it asks for", "HEAD", "/v2/library/nginx/manifests/latest?ns=docker.io", 200},
		{"the node finds a digest", "GET", "/v2/library/nginx/manifests/" + digest + "?ns=docker.io", 200},
		{"the protocol's first question", "GET", "/v2/", 200},
		{"an unknown tag without a registry", "GET", "/v2/other/manifests/latest", 404},
		{"writing", "PUT", "/v2/library/nginx/manifests/latest", 405},
		{"another path", "GET", "/metrics", 404},
		{"a registry that cannot be reached", "GET", "/v2/other/manifests/latest?ns=127.0.0.1:1", 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := status(t, test.method, "http://"+host+test.path); got != test.want {
				t.Errorf("%s %s: got %d, want %d", test.method, test.path, got, test.want)
			}
		})
	}
}

func TestPodsAreRefused(t *testing.T) {
	host, _ := serve(t, "192.0.2.1")
	if got := status(t, "GET", "http://"+host+"/v2/"); got != http.StatusForbidden {
		t.Errorf("got %d, want %d", got, http.StatusForbidden)
	}
}

func TestAMissingImageComesFromItsOwnRegistry(t *testing.T) {
	upstream, digest := serve(t, "127.0.0.1")
	host, _ := serve(t, "127.0.0.1")
	url := "http://" + host + "/v2/docker.io/library/nginx/manifests/" + digest + "?ns=" + upstream
	if got := status(t, "GET", url); got != http.StatusOK {
		t.Errorf("got %d, want %d", got, http.StatusOK)
	}
}
