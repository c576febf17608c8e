package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opensandbox/operator/tests/cluster/internal/cluster"
	"github.com/opensandbox/operator/tests/cluster/internal/image"
	"github.com/opensandbox/operator/tests/cluster/internal/prereq"
	"github.com/opensandbox/operator/tests/cluster/internal/registry"
)

func buildImage(_ context.Context, args []string) error {
	o := newOptions("image")
	tag := o.String("tag", "", "`name` of the image, for example opensandbox.io/controller:dev")
	var binary image.Binary
	o.StringVar(&binary.Path, "binary", "", "static `program` that the image runs")
	o.StringVar(&binary.User, "user", "65532", "`user` number that it runs as")
	o.StringVar(&binary.Entrypoint, "entrypoint", "", "its `path` in the image (default: its name, in /)")
	o.StringVar(&binary.Launcher, "launcher", "", "`path` in the image of a second copy, which can be read; the first one then cannot")
	if err := o.parse(args); err != nil {
		return err
	}
	if *tag == "" || binary.Path == "" {
		return errors.New("image: --tag and --binary are needed")
	}
	if binary.Entrypoint == "" {
		binary.Entrypoint = "/" + filepath.Base(binary.Path)
	}
	c, _, err := o.open()
	if err != nil {
		return err
	}
	img, err := image.FromBinary(binary)
	if err != nil {
		return err
	}
	store := image.Store{Dir: c.Images()}
	if err := store.Put(*tag, img, ""); err != nil {
		return err
	}
	return give(c, []string{*tag})
}

// give puts stored images onto the node, if it runs. If it does not, it fetches them from
// the cluster's registry later, when a pod needs them.
func give(c *cluster.Cluster, names []string) error {
	for _, name := range names {
		if !c.NodeRuns() {
			fmt.Fprintf(os.Stderr, "%s is stored for the next start of the node\n", name)
			continue
		}
		if err := c.Pull(name); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s is on the node\n", name)
	}
	return nil
}

func load(_ context.Context, args []string) error {
	o := newOptions("load")
	var files []string
	// The file may stand before the flags.
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		files, args = append(files, args[0]), args[1:]
	}
	if err := o.Parse(args); err != nil {
		return err
	}
	files = append(files, o.Args()...)
	if len(files) == 0 {
		return errors.New("load: name an archive")
	}
	c, _, err := o.open()
	if err != nil {
		return err
	}
	store := image.Store{Dir: c.Images()}
	for _, file := range files {
		names, err := store.Load(file)
		if err != nil {
			return err
		}
		if err := give(c, names); err != nil {
			return err
		}
	}
	return nil
}

func sampleImages(ctx context.Context, args []string) error {
	o := newOptions("sample-images")
	force := o.Bool("force", false, "make them again, from the packages that Debian has now")
	if err := o.parse(args); err != nil {
		return err
	}
	c, _, err := o.open()
	if err != nil {
		return err
	}
	unlock, err := c.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	samples := image.Samples{Store: image.Store{Dir: c.Images()}, Work: c.Path("cache"), Out: os.Stderr}
	stale, err := samples.Stale(*force)
	if err != nil {
		return err
	}
	if len(stale) > 0 {
		if err := c.Host.Root("making the sample images (debootstrap)"); err != nil {
			return err
		}
		if err := c.Host.Programs(prereq.AptGet, prereq.Dpkg, prereq.Debootstrap); err != nil {
			return err
		}
		if err := samples.Make(ctx, stale); err != nil {
			return err
		}
	}
	return give(c, image.SampleNames)
}

func serveRegistry(ctx context.Context, args []string) error {
	o := newOptions("registry")
	listen := o.String("listen", "", "`address` to listen on")
	images := o.String("images", "", "`directory` of the image store")
	allow := o.String("allow", "", "comma-separated `addresses` that may ask")
	if err := o.parse(args); err != nil {
		return err
	}
	server := &http.Server{
		Addr:              *listen,
		Handler:           &registry.Server{Images: *images, Allow: strings.Split(*allow, ",")},
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
