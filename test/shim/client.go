// client.go: a client in pure Go, as gVisor is one: raw system calls, goroutines that are preempted by signals, stacks
// that move. Ends with `N passed, N failed`.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	getAPIVersion = 0xae00
	createVM      = 0xae01
	getMmapSize   = 0xae04
	createVCPU    = 0xae41
	setMemory     = 0x4020ae46
	run           = 0xae80
	setRegs       = 0x4090ae82
	getRegs       = 0x8090ae81
	getSregs      = 0x8138ae83
	setSregs      = 0x4138ae84

	exitIO   = 2
	exitIntr = 10
)

type region struct {
	slot, flags   uint32
	gpa, size, at uint64
}

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type guest struct {
	kvm, vm, vcpu int
	ram, shared   []byte
}

var passed, failed int

func check(name string, ok bool, what ...interface{}) {
	if ok {
		passed++
	} else {
		failed++
		fmt.Println("FAILED", name, what)
	}
}

func ioctl(fd int, req, arg uintptr) (int, syscall.Errno) {
	r, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), req, arg)
	return int(r), e
}

// A guest in real mode whose code is at 0x1000.
func open(code []byte) (*guest, error) {
	var g guest
	var err error
	var e syscall.Errno
	if g.kvm, err = syscall.Open("/dev/kvm", syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if v, _ := ioctl(g.kvm, getAPIVersion, 0); v != 12 {
		return nil, fmt.Errorf("API %d", v)
	}
	if g.vm, e = ioctl(g.kvm, createVM, 0); e != 0 {
		return nil, e
	}
	g.ram, err = syscall.Mmap(-1, 0, 0x10000, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, err
	}
	copy(g.ram[0x1000:], code)
	r := region{size: 0x10000, at: uint64(uintptr(unsafe.Pointer(&g.ram[0])))}
	if _, e = ioctl(g.vm, setMemory, uintptr(unsafe.Pointer(&r))); e != 0 {
		return nil, e
	}
	if g.vcpu, e = ioctl(g.vm, createVCPU, 0); e != 0 {
		return nil, e
	}
	size, _ := ioctl(g.kvm, getMmapSize, 0)
	g.shared, err = syscall.Mmap(g.vcpu, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	var sregs [312]byte
	ioctl(g.vcpu, getSregs, uintptr(unsafe.Pointer(&sregs)))
	for n := 0; n < 8; n++ {
		sregs[n] = 0 // cs.base
	}
	sregs[12], sregs[13] = 0, 0 // cs.selector
	if _, e = ioctl(g.vcpu, setSregs, uintptr(unsafe.Pointer(&sregs))); e != 0 {
		return nil, e
	}
	start := regs{rip: 0x1000, rflags: 2, rsp: 0x800}
	if _, e = ioctl(g.vcpu, setRegs, uintptr(unsafe.Pointer(&start))); e != 0 {
		return nil, e
	}
	return &g, nil
}

func (g *guest) exitReason() uint32 {
	return *(*uint32)(unsafe.Pointer(&g.shared[8]))
}

func (g *guest) close() {
	syscall.Munmap(g.shared)
	syscall.Close(g.vcpu)
	syscall.Close(g.vm)
	syscall.Close(g.kvm)
	syscall.Munmap(g.ram)
}

// Runs until the guest writes to its port; counts the times a signal came first.
func (g *guest) toPort() (interrupted int, err error) {
	for {
		_, e := ioctl(g.vcpu, run, 0)
		if e == syscall.EINTR {
			interrupted++
			continue
		}
		if e != 0 {
			return interrupted, e
		}
		if g.exitReason() != exitIO {
			return interrupted, fmt.Errorf("exit %d", g.exitReason())
		}
		return interrupted, nil
	}
}

// mov ecx, N; again: dec ecx; jnz again; out 0x10, al; jmp to the start
func loop(n uint32) []byte {
	return []byte{0x66, 0xb9, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 0x66, 0x49, 0x75, 0xfc, 0xe6, 0x10, 0xeb, 0xf2}
}

func grow(n int) int {
	var a [256]byte
	if n == 0 {
		return 0
	}
	a[n%256] = byte(n)
	return grow(n-1) + int(a[n%256])
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		g, err := open([]byte{0xe6, 0x10})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if _, err = g.toPort(); err != nil {
			os.Exit(2)
		}
		os.Exit(12)
	}

	g, err := open([]byte{0xe6, 0x10})
	check("open", err == nil, err)
	if err == nil {
		_, err = g.toPort()
		check("port", err == nil, err)
		g.close()
	}

	// Goroutines with a guest each, others that spin (and so are preempted by SIGURG), garbage, stacks that grow.
	var wg sync.WaitGroup
	var stop int32
	var bad, runs int64
	for n := 0; n < 2; n++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			x := 0
			for atomic.LoadInt32(&stop) == 0 {
				for k := 0; k < 10000000; k++ {
					x += k
				}
				grow(2000)
			}
		}()
	}
	var guests sync.WaitGroup
	for n := 0; n < 6; n++ {
		guests.Add(1)
		go func() {
			defer guests.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			g, err := open(loop(200000))
			if err != nil {
				atomic.AddInt64(&bad, 1)
				return
			}
			for k := 0; k < 100; k++ {
				if _, err := g.toPort(); err != nil {
					atomic.AddInt64(&bad, 1)
				}
				var r regs
				ioctl(g.vcpu, getRegs, uintptr(unsafe.Pointer(&r)))
				if r.rcx != 0 {
					atomic.AddInt64(&bad, 1)
				}
				_ = make([]byte, 100000)
				atomic.AddInt64(&runs, 1)
			}
			g.close()
		}()
	}
	guests.Wait()
	atomic.StoreInt32(&stop, 1)
	wg.Wait()
	check("goroutines", bad == 0 && runs == 600, bad, runs)

	// A thread in KVM_RUN is kicked with SIGURG, which Go handles for itself.
	g, err = open([]byte{0xeb, 0xfe})
	check("open", err == nil, err)
	if err == nil {
		tid := make(chan int)
		done := make(chan syscall.Errno)
		go func() {
			runtime.LockOSThread()
			tid <- syscall.Gettid()
			_, e := ioctl(g.vcpu, run, 0)
			done <- e
		}()
		t := <-tid
		var e syscall.Errno
	wait:
		for {
			syscall.Tgkill(syscall.Getpid(), t, syscall.SIGURG)
			select {
			case e = <-done:
				break wait
			case <-time.After(5 * time.Millisecond):
			}
		}
		check("kick", e == syscall.EINTR && g.exitReason() == exitIntr, e, g.exitReason())
		g.close()
	}

	// Children: the same program, and a dynamic one.
	self, _ := os.Executable()
	c := exec.Command(self, "child")
	c.Run()
	check("child", c.ProcessState.ExitCode() == 12, c.ProcessState)
	err = exec.Command("/bin/sh", "-c", "test -c /dev/kvm").Run()
	check("dynamic child", err == nil, err)
	fi, err := os.Stat("/dev/kvm")
	check("stat", err == nil && fi.Mode()&os.ModeCharDevice != 0, fi, err)

	// A panic of memory is still one that Go recovers from.
	func() {
		defer func() { check("recover", recover() != nil) }()
		var p *int
		*p = 1
	}()
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed != 0 {
		os.Exit(1)
	}
}
