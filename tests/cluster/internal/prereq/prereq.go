// Package prereq checks that the machine has what a cluster needs, and installs
// what Debian packages can give. Every refusal says what is missing and how to get
// it.
package prereq

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// Need is one program that must be on the PATH.
type Need struct {
	// Program is its name on the PATH.
	Program string
	// Package is the Debian package that has it; empty when it must come from
	// elsewhere.
	Package string
	// Hint says how to get it on other systems.
	Hint string
}

// The programs that a cluster uses and does not build itself.
var (
	Go          = Need{Program: "go", Hint: "install Go from https://go.dev/dl"}
	Runc        = Need{Program: "runc", Package: "runc", Hint: "install runc 1.1 or later (https://github.com/opencontainers/runc/releases)"}
	Nft         = Need{Program: "nft", Package: "nftables", Hint: "install the nftables package of your distribution"}
	Iptables    = Need{Program: "iptables", Package: "iptables", Hint: "install the iptables package of your distribution"}
	Ipset       = Need{Program: "ipset", Package: "ipset", Hint: "install the ipset package of your distribution"}
	Mount       = Need{Program: "mount", Package: "mount", Hint: "install the util-linux package of your distribution"}
	AptGet      = Need{Program: "apt-get", Hint: "the sample images are made of Debian packages: use a Debian or Ubuntu machine, or let the node pull nginx, ubuntu and busybox from docker.io"}
	Dpkg        = Need{Program: "dpkg", Hint: "the sample images are made of Debian packages: use a Debian or Ubuntu machine"}
	Debootstrap = Need{Program: "debootstrap", Package: "debootstrap", Hint: "install the debootstrap package"}
)

// Host is what the checks look at; tests replace its parts.
type Host struct {
	OS       string
	UID      int
	LookPath func(program string) (string, error)
	// Install installs Debian packages.
	Install func(packages []string) error
	// Out is where it is said what is being installed.
	Out io.Writer
}

// sbin are folders that a root shell may lack on its PATH.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// ThisHost looks at the real machine. It adds the sbin folders to the PATH.
func ThisHost(out io.Writer) *Host {
	path := strings.Split(os.Getenv("PATH"), ":")
	for _, dir := range sbin {
		if !slices.Contains(path, dir) {
			path = append(path, dir)
		}
	}
	_ = os.Setenv("PATH", strings.Join(path, ":"))
	return &Host{OS: runtime.GOOS, UID: os.Geteuid(), LookPath: exec.LookPath, Install: aptInstall, Out: out}
}

// Linux fails on other systems.
func (h *Host) Linux() error {
	if h.OS != "linux" {
		return fmt.Errorf("the hermetic cluster runs on linux only and this is %s: use a Linux machine or virtual machine, or a cluster of your own (for example kind)", h.OS)
	}
	return nil
}

// Root fails when the user is not root. The argument says what root is needed for.
func (h *Host) Root(what string) error {
	if h.UID != 0 {
		return fmt.Errorf("%s needs root, and this is user %d: run it as root (sudo -E env PATH=\"$PATH\" ...)", what, h.UID)
	}
	return nil
}

// Programs makes sure that all needs are on the PATH; it installs packages for
// those that are not, when it can.
func (h *Host) Programs(needs ...Need) error {
	missing := h.missing(needs)
	if len(missing) == 0 {
		return nil
	}
	var packages []string
	for _, need := range missing {
		if need.Package != "" {
			packages = append(packages, need.Package)
		}
	}
	var installErr error
	if len(packages) > 0 && h.UID == 0 && h.has("apt-get") {
		fmt.Fprintf(h.Out, "installing %s with apt-get\n", strings.Join(packages, " "))
		installErr = h.Install(packages)
		missing = h.missing(needs)
	}
	if len(missing) == 0 {
		return nil
	}
	errs := []error{installErr}
	for _, need := range missing {
		errs = append(errs, fmt.Errorf("%s is not installed: %s", need.Program, need.remedy()))
	}
	return errors.Join(errs...)
}

func (n Need) remedy() string {
	if n.Package == "" {
		return n.Hint
	}
	return fmt.Sprintf("on Debian or Ubuntu run 'apt-get install %s', elsewhere %s", n.Package, n.Hint)
}

func (h *Host) missing(needs []Need) []Need {
	var missing []Need
	for _, need := range needs {
		if !h.has(need.Program) {
			missing = append(missing, need)
		}
	}
	return missing
}

func (h *Host) has(program string) bool {
	_, err := h.LookPath(program)
	return err == nil
}

func aptInstall(packages []string) error {
	install := append([]string{"install", "-y", "--no-install-recommends"}, packages...)
	if apt(install...) == nil {
		return nil
	}
	// The package lists may be missing or old: fetch them and try once more.
	if err := apt("update"); err != nil {
		return err
	}
	return apt(install...)
}

func apt(args ...string) error {
	cmd := exec.Command("apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, lastLines(string(out), 5))
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
