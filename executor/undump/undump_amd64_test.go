package undump

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// role is what a copy of the test program is, if not the tests.
const role = "UNDUMP_TEST_ROLE"

const testPatience = 30 * time.Second

// pauseUser is whom the pod's first process usually runs as.
const pauseUser = 65535

func init() {
	if os.Getenv(role) != "" {
		runtime.LockOSThread() // the main thread is the one that is traced
	}
}

func TestMain(m *testing.M) {
	switch name := os.Getenv(role); name {
	case "":
		os.Exit(m.Run())
	case "attacker":
		attack(os.Args[1])
	default:
		serveSignals()
		standIns[name]()
	}
}

var spun int

// standIns are what the first process of a pod may be doing.
var standIns = map[string]func(){
	"pause": func() {
		for {
			if err := unix.Pause(); err != unix.EINTR {
				fmt.Println("pause:", err)
			}
		}
	},
	"read": func() {
		for {
			var line [64]byte
			n, err := syscall.Read(3, line[:])
			fmt.Println("read", n, err, strings.TrimSpace(string(line[:max(n, 0)])))
		}
	},
	"nanosleep": func() {
		began := time.Now()
		err := unix.Nanosleep(&unix.Timespec{Sec: 2}, nil)
		fmt.Println("slept", err, time.Since(began) >= 2*time.Second)
		select {}
	},
	"sigsuspend": func() {
		var none [8]byte
		for {
			_, _, errno := unix.Syscall(unix.SYS_RT_SIGSUSPEND, uintptr(unsafe.Pointer(&none[0])), unsafe.Sizeof(none), 0)
			if errno != unix.EINTR {
				fmt.Println("sigsuspend:", errno)
			}
		}
	},
	"spin": func() {
		for n := 0; ; n++ {
			spun = n
		}
	},
	"forbidden":      func() { pauseFiltered(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)) },
	"forbidden-trap": func() { pauseFiltered(unix.SECCOMP_RET_TRAP) },
}

// pauseFiltered pauses on a thread whose prctl a seccomp profile answers so.
func pauseFiltered(answer uint32) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PRCTL, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: answer},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	exitOn(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	exitOn(unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
	fmt.Println("filtered")
	for {
		_ = unix.Pause()
	}
}

// serveSignals answers SIGUSR1, reaps, and ends at SIGTERM, as pause does.
func serveSignals() {
	signals := make(chan os.Signal, 100)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGCHLD, unix.SIGTERM)
	go func() {
		for sig := range signals {
			switch sig {
			case unix.SIGTERM:
				os.Exit(0)
			case unix.SIGUSR1:
				fmt.Println("usr1")
			case unix.SIGCHLD:
				for {
					pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
					if err != nil || pid <= 0 {
						break
					}
					fmt.Println("reaped")
				}
			}
		}
	}()
	child := exec.Command("cat")
	child.Stdin = os.Stdin
	exitOn(child.Start())
	fmt.Println("up")
}

// standIn is a first process of a process namespace, with no rights.
type standIn struct {
	t     *testing.T
	cmd   *exec.Cmd
	pid   int
	stdin io.WriteCloser
	input *os.File // its descriptor 3
	lines chan string
}

func start(t *testing.T, name string) *standIn {
	t.Helper()
	s := &standIn{t: t, cmd: exec.Command("/proc/self/exe"), lines: make(chan string, 1000)}
	s.cmd.Env = append(os.Environ(), role+"="+name, "GODEBUG=asyncpreemptoff=1")
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID,
		Credential: &syscall.Credential{Uid: pauseUser, Gid: pauseUser},
	}
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	s.cmd.ExtraFiles, s.input = []*os.File{read}, write
	s.stdin, err = s.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, s.cmd.Start(), "these tests need root")
	s.pid = s.cmd.Process.Pid
	go func() {
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			s.lines <- scanner.Text()
		}
		close(s.lines)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		write.Close()
	})
	s.says("up")
	return s
}

func (s *standIn) says(want string) {
	s.t.Helper()
	select {
	case got, open := <-s.lines:
		require.True(s.t, open, "it has ended")
		require.Equal(s.t, want, got)
	case <-time.After(testPatience):
		require.Fail(s.t, "it says nothing", "want %q", want)
	}
}

// works wants it to do all that pause is there for.
func (s *standIn) works() {
	s.t.Helper()
	require.Equal(s.t, "0", s.status("TracerPid"))
	require.NoError(s.t, unix.Kill(s.pid, unix.SIGUSR1))
	s.says("usr1")
	s.stdin.Close() // its child ends
	s.says("reaped")
	require.NoError(s.t, unix.Kill(s.pid, unix.SIGTERM))
	require.NoError(s.t, s.cmd.Wait())
}

func (s *standIn) status(key string) string {
	s.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	require.NoError(s.t, err)
	for line := range strings.Lines(string(data)) {
		if k, value, _ := strings.Cut(line, ":"); k == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// spins waits until its main thread has made its last system call.
func (s *standIn) spins() {
	s.t.Helper()
	used := func() (cpu time.Duration) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", s.pid))
		require.NoError(s.t, err)
		_, err = fmt.Sscan(string(data), (*int64)(&cpu))
		require.NoError(s.t, err)
		return cpu
	}
	before := used()
	require.Eventually(s.t, func() bool { return used() >= before+100*time.Millisecond }, testPatience, time.Millisecond)
}

// undumpable is what anybody can see of it.
func (s *standIn) undumpable() bool {
	s.t.Helper()
	var stat unix.Stat_t
	require.NoError(s.t, unix.Stat(fmt.Sprintf("/proc/%d/limits", s.pid), &stat))
	return stat.Uid == 0
}

// attacked returns what a sandbox can do to it that runs as root with the capabilities
// that containerd gives, and becomes pause's user.
func (s *standIn) attacked() map[string]bool {
	s.t.Helper()
	cmd := exec.Command("/proc/self/exe", strconv.Itoa(s.pid))
	cmd.Env = append(os.Environ(), role+"=attacker")
	out, err := cmd.Output()
	require.NoError(s.t, err)
	can := map[string]bool{}
	require.NoError(s.t, json.Unmarshal(out, &can), "%s", out)
	return can
}

// containerdsDefault capabilities of a container.
const containerdsDefault = 0xa80425fb

func attack(target string) {
	pid, err := strconv.Atoi(target)
	exitOn(err)
	for bit := 0; unix.Prctl(unix.PR_CAPBSET_READ, uintptr(bit), 0, 0, 0) == nil && bit <= unix.CAP_LAST_CAP; bit++ {
		if containerdsDefault&(1<<bit) == 0 {
			exitOn(unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0))
		}
	}
	mask := [2]unix.CapUserData{{Effective: containerdsDefault, Permitted: containerdsDefault}}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	exitOn(unix.Capset(&header, &mask[0]))
	can := map[string]bool{"as-root": open(pid, "mem", os.O_RDWR) == nil}
	for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		_, _, errno := unix.RawSyscall(call, pauseUser, pauseUser, pauseUser)
		if errno != 0 {
			exitOn(errno)
		}
	}
	can["maps"] = open(pid, "maps", os.O_RDONLY) == nil
	can["root"] = open(pid, "root/.", os.O_RDONLY) == nil
	can["mem"] = rewrite(pid) == nil
	if can["seize"] = unix.PtraceSeize(pid) == nil; can["seize"] {
		exitOn(unix.PtraceInterrupt(pid))
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		exitOn(err)
		exitOn(unix.PtraceDetach(pid))
	}
	exitOn(json.NewEncoder(os.Stdout).Encode(can))
}

func open(pid int, name string, flags int) error {
	file, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", pid, name), flags, 0)
	if err == nil {
		if name == "maps" {
			_, err = io.ReadAll(file)
		}
		file.Close()
	}
	return err
}

// rewrite writes to the process what is there, at the start of its program.
func rewrite(pid int) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	from, _, _ := strings.Cut(string(maps), "-")
	address, err := strconv.ParseInt(from, 16, 64)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	var word [8]byte
	if _, err := mem.ReadAt(word[:], address); err != nil {
		return err
	}
	_, err = mem.WriteAt(word[:], address)
	return err
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestAHostileSandboxCannotTakeItOver(t *testing.T) {
	s := start(t, "pause")
	require.Equal(t, map[string]bool{"as-root": false, "maps": true, "root": true, "mem": true, "seize": true}, s.attacked(),
		"without it, it can")
	require.False(t, s.undumpable())
	for range 2 { // the second time changes nothing
		require.NoError(t, Process(s.pid))
		require.True(t, s.undumpable())
		assert.Equal(t, map[string]bool{"as-root": false, "maps": false, "root": false, "mem": false, "seize": false}, s.attacked())
	}
	s.works()
}

func TestTheProcessGoesOn(t *testing.T) {
	for name, then := range map[string]func(*standIn){
		"pause":      func(*standIn) {},
		"sigsuspend": func(*standIn) {},
		"nanosleep":  func(s *standIn) { s.says("slept <nil> true") },
		"read": func(s *standIn) {
			_, err := s.input.WriteString("hello\n")
			require.NoError(s.t, err)
			s.says("read 6 <nil> hello")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, name)
			for range 100 {
				require.NoError(t, Process(s.pid))
			}
			require.True(t, s.undumpable())
			then(s)
			s.works()
		})
	}
}

func TestSignalsArriveMeanwhile(t *testing.T) {
	for _, name := range []string{"pause", "sigsuspend"} {
		t.Run(name, func(t *testing.T) {
			s := start(t, name)
			stop, stopped := make(chan struct{}), make(chan int)
			go func() {
				sent := 0
				defer func() { stopped <- sent }()
				for {
					select {
					case <-stop:
						return
					default:
					}
					if unix.Kill(s.pid, unix.SIGUSR1) != nil {
						return
					}
					select {
					case line := <-s.lines:
						if line != "usr1" {
							t.Errorf("it says %q", line)
							return
						}
					case <-time.After(testPatience):
						t.Error("a signal was lost")
						return
					}
					sent++
				}
			}()
			for range 300 {
				require.NoError(t, Process(s.pid))
			}
			close(stop)
			assert.Positive(t, <-stopped)
			require.True(t, s.undumpable())
			s.works()
		})
	}
}

func TestWhatCannotBeDoneIsSaidAndHarmsNothing(t *testing.T) {
	for name, want := range map[string]string{
		"spin":           "not blocked in a system call",
		"forbidden":      "operation not permitted",
		"forbidden-trap": "signals to deal with",
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, name)
			if name == "spin" {
				s.spins()
			} else {
				s.says("filtered")
			}
			require.ErrorContains(t, Process(s.pid), want)
			require.False(t, s.undumpable())
			s.works()
		})
	}
	t.Run("stopped", func(t *testing.T) {
		s := start(t, "pause")
		require.NoError(t, unix.Kill(s.pid, unix.SIGSTOP))
		require.ErrorIs(t, Process(s.pid), errBusy)
		// Detaching wakes it for a moment, in which it stops itself again.
		require.Eventually(t, func() bool { return strings.Contains(s.status("State"), "stopped") }, testPatience, time.Millisecond)
		require.NoError(t, unix.Kill(s.pid, unix.SIGCONT))
		s.works()
	})
	t.Run("traced by another", func(t *testing.T) {
		s := start(t, "pause")
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		require.NoError(t, unix.PtraceSeize(s.pid))
		require.ErrorIs(t, Process(s.pid), unix.EPERM)
		require.NoError(t, unix.PtraceInterrupt(s.pid))
		_, err := unix.Wait4(s.pid, nil, unix.WALL, nil)
		require.NoError(t, err)
		require.NoError(t, unix.PtraceDetach(s.pid))
		s.works()
	})
	t.Run("no process", func(t *testing.T) {
		require.ErrorIs(t, Process(1<<22+1), unix.ESRCH)
	})
}

// A thread that ends while it traces lets go, also of what has not stopped.
func TestTheEndOfTheThreadDetaches(t *testing.T) {
	s := start(t, "pause")
	for range 20 {
		require.NoError(t, onOwnThread(func() error {
			assert.NotEqual(t, unix.Getpid(), unix.Gettid())
			return unix.PtraceSeize(s.pid)
		}))
		require.Eventually(t, func() bool { return s.status("TracerPid") == "0" }, testPatience, time.Millisecond)
	}
	s.works()
}

// The registers that are not the call's own are as they were.
func TestRegistersAreRestored(t *testing.T) {
	s := start(t, "pause")
	look := func() (regs unix.PtraceRegs) {
		require.NoError(t, onOwnThread(func() error {
			if err := unix.PtraceSeize(s.pid); err != nil {
				return err
			}
			tracee := &tracee{pid: s.pid}
			if err := tracee.interrupt(); err != nil {
				return err
			}
			if err := unix.PtraceGetRegs(s.pid, &regs); err != nil {
				return err
			}
			return tracee.detach()
		}))
		return regs
	}
	call := fmt.Sprintf("/proc/%d/syscall", s.pid)
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(call)
		return err == nil && strings.HasPrefix(string(data), strconv.Itoa(unix.SYS_PAUSE)+" ")
	}, testPatience, time.Millisecond)
	before := look()
	require.NoError(t, Process(s.pid))
	require.Equal(t, before, look())
	s.works()
}
