// Package brokennet is a network that breaks when a test says so.
package brokennet

import (
	"net"
	"sync"
	"testing"
)

// What becomes of connections.
const (
	Forwarding = "forwarding"
	Swallowing = "swallowing" // they stay, and nothing passes
	Refusing   = "refusing"   // they end
)

// Proxy leads to a server.
type Proxy struct {
	listener net.Listener
	server   string
	running  sync.WaitGroup

	mu    sync.Mutex
	state string
	moved chan struct{} // closed when the state is another
	conns map[net.Conn]bool
}

// New makes a Proxy that is forwarding, until the test ends.
func New(t testing.TB, server string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, server: server, state: Forwarding, moved: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(p.Close)
	return p
}

// Close ends all connections, and waits for it.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.Set(Refusing)
	p.running.Wait()
}

// Addr is where the Proxy listens, on 127.0.0.1.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Port is that of Addr.
func (p *Proxy) Port() uint16 { return p.listener.Addr().(*net.TCPAddr).AddrPort().Port() }

// Set changes what becomes of connections.
func (p *Proxy) Set(state string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
	close(p.moved)
	p.moved = make(chan struct{})
	if state == Refusing {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

// add keeps a connection, unless there shall be none.
func (p *Proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == Refusing {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = c.Close()
	delete(p.conns, c)
}

// pass waits until something may pass, and reports whether.
func (p *Proxy) pass() bool {
	for {
		p.mu.Lock()
		state, moved := p.state, p.moved
		p.mu.Unlock()
		switch state {
		case Forwarding:
			return true
		case Refusing:
			return false
		}
		<-moved
	}
}

func (p *Proxy) serve(client net.Conn) {
	if !p.add(client) {
		return
	}
	defer p.remove(client)
	if !p.pass() {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil || !p.add(server) {
		return
	}
	defer p.remove(server)
	var both sync.WaitGroup
	for _, d := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			defer func() { _, _ = d[0].Close(), d[1].Close() }()
			buffer := make([]byte, 32<<10)
			for {
				n, err := d[0].Read(buffer)
				if err != nil || !p.pass() {
					return
				}
				if _, err := d[1].Write(buffer[:n]); err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}
